// giou_loss on the host, shared by both backends. A backend has
//   forward(inputs, count, loss)                    writes the sum over the pairs
//   backward(inputs, count, grad_loss, grad_pred)
// and, if it has both in one pass,
//   forward_and_backward(inputs, count, grad_loss, loss, grad_pred)
#pragma once

#include <optional>
#include <tuple>

#include "resobj/giou_loss_math.h"
#include "resobj/tensor_checks.h"

namespace resobj {

constexpr const char* kGiouOp = "giou_loss";

// The arguments of giou_loss, checked and contiguous.
struct GiouArguments {
  Tensor pred;
  Tensor target;
  std::optional<Tensor> mask;

  GiouArguments(const Tensor& p, const Tensor& t, const std::optional<Tensor>& m) {
    check_devices(kGiouOp, {{"pred", p}, {"target", t}});
    check_dtypes(kGiouOp, {{"pred", p}, {"target", t}});
    STD_TORCH_CHECK(p.dim() >= 1 && p.size(p.dim() - 1) == 4, kGiouOp,
                    ": pred must have shape (..., 4)");
    check_same_shape(kGiouOp, {"target", t}, {"pred", p});
    pred = as_contiguous(p);
    target = as_contiguous(t);
    if (!m.has_value()) return;
    check_devices(kGiouOp, {{"pred", p}, {"mask", *m}});
    STD_TORCH_CHECK(m->scalar_type() == ScalarType::Bool, kGiouOp, ": mask must be bool");
    check_one_per_row(kGiouOp, {"mask", *m}, {"pred", p});
    mask = as_contiguous(*m);
  }

  int64_t count() const { return pred.numel() / 4; }

  template <typename T>
  GiouInputs<T> inputs() const {
    return GiouInputs<T>{pred.const_data_ptr<T>(), target.const_data_ptr<T>(),
                         mask.has_value() ? mask->const_data_ptr<bool>() : nullptr};
  }
};

namespace host {

template <typename Backend>
Tensor giou_loss(const Tensor& pred, const Tensor& target, std::optional<Tensor> mask) {
  const GiouArguments arguments(pred, target, mask);
  const typename Backend::DeviceGuard guard(pred);
  Tensor loss = new_tensor(pred, {});
  dispatch_float(pred, [&](auto scalar) {
    Backend::forward(arguments.inputs<decltype(scalar)>(), arguments.count(), loss);
  });
  return loss;
}

template <typename Backend>
Tensor giou_loss_backward(const Tensor& grad_loss, const Tensor& pred, const Tensor& target,
                          std::optional<Tensor> mask) {
  const GiouArguments arguments(pred, target, mask);
  check_grad_loss(kGiouOp, grad_loss, {"pred", pred});
  const typename Backend::DeviceGuard guard(pred);
  Tensor grad_pred = new_tensor(pred, pred.sizes());
  dispatch_float(pred, [&](auto scalar) {
    Backend::backward(arguments.inputs<decltype(scalar)>(), arguments.count(), grad_loss,
                      grad_pred);
  });
  return grad_pred;
}

// The loss, and its gradient for an incoming gradient that is known beforehand.
template <typename Backend>
std::tuple<Tensor, Tensor> giou_loss_with_gradient(const Tensor& grad_loss, const Tensor& pred,
                                                   const Tensor& target,
                                                   std::optional<Tensor> mask) {
  const GiouArguments arguments(pred, target, mask);
  check_grad_loss(kGiouOp, grad_loss, {"pred", pred});
  const typename Backend::DeviceGuard guard(pred);
  Tensor loss = new_tensor(pred, {});
  Tensor grad_pred = new_tensor(pred, pred.sizes());
  dispatch_float(pred, [&](auto scalar) {
    Backend::forward_and_backward(arguments.inputs<decltype(scalar)>(), arguments.count(),
                                  grad_loss, loss, grad_pred);
  });
  return {loss, grad_pred};
}

}  // namespace host
}  // namespace resobj
