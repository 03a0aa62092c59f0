// sigmoid_focal_loss on the host, shared by both backends. A backend has
//   forward<focus>(inputs, count, loss)      writes the sum over the `count` logits
//   backward<focus>(inputs, count, grad_loss, grad_logits)
// and, if it has both in one pass,
//   forward_and_backward<focus>(inputs, count, grad_loss, loss, grad_logits)
#pragma once

#include <optional>
#include <tuple>
#include <type_traits>

#include "resobj/sigmoid_focal_loss_math.h"
#include "resobj/tensor_checks.h"

namespace resobj {

constexpr const char* kFocalOp = "sigmoid_focal_loss";
constexpr double kMaxGamma = 1000;

// The arguments of sigmoid_focal_loss, checked and contiguous. Keeps alive what the inputs point
// to.
struct FocalArguments {
  Tensor logits;
  Tensor labels;
  std::optional<Tensor> mask;
  double alpha;
  double gamma;

  FocalArguments(const Tensor& x, const Tensor& y, const std::optional<Tensor>& m, double alpha,
                 double gamma)
      : alpha(alpha), gamma(gamma) {
    check_devices(kFocalOp, {{"logits", x}, {"labels", y}});
    check_dtypes(kFocalOp, {{"logits", x}});
    STD_TORCH_CHECK(x.dim() >= 1, kFocalOp, ": logits must have shape (..., K)");
    STD_TORCH_CHECK(y.scalar_type() == ScalarType::Long, kFocalOp, ": labels must be int64");
    check_one_per_row(kFocalOp, {"labels", y}, {"logits", x});
    STD_TORCH_CHECK(gamma >= 0, kFocalOp, ": gamma must not be negative");
    STD_TORCH_CHECK(gamma <= kMaxGamma, kFocalOp, ": gamma must be at most ", kMaxGamma);
    logits = as_contiguous(x);
    labels = as_contiguous(y);
    if (!m.has_value()) return;
    check_devices(kFocalOp, {{"logits", x}, {"mask", *m}});
    STD_TORCH_CHECK(m->scalar_type() == ScalarType::Bool, kFocalOp, ": mask must be bool");
    check_one_per_row(kFocalOp, {"mask", *m}, {"logits", x});
    mask = as_contiguous(*m);
  }

  template <typename T>
  FocalInputs<T> inputs() const {
    return FocalInputs<T>{logits.const_data_ptr<T>(),
                          labels.const_data_ptr<int64_t>(),
                          mask.has_value() ? mask->const_data_ptr<bool>() : nullptr,
                          logits.size(logits.dim() - 1),
                          static_cast<T>(alpha < 0 ? 1.0 : alpha),
                          static_cast<T>(alpha < 0 ? 1.0 : 1.0 - alpha),
                          static_cast<T>(gamma)};
  }
};

// Calls f(inputs, focus), where focus() is a constant that can be a template argument.
template <typename F>
void dispatch_focal(const FocalArguments& arguments, const F& f) {
  dispatch_float(arguments.logits, [&](auto scalar) {
    const auto inputs = arguments.inputs<decltype(scalar)>();
    if (arguments.gamma == 0) return f(inputs, std::integral_constant<Focus, Focus::kNone>());
    if (arguments.gamma == 2) return f(inputs, std::integral_constant<Focus, Focus::kSquare>());
    f(inputs, std::integral_constant<Focus, Focus::kPower>());
  });
}

namespace host {

template <typename Backend>
Tensor sigmoid_focal_loss(const Tensor& logits, const Tensor& labels, std::optional<Tensor> mask,
                          double alpha, double gamma) {
  const FocalArguments arguments(logits, labels, mask, alpha, gamma);
  const typename Backend::DeviceGuard guard(logits);
  Tensor loss = new_tensor(logits, {});
  dispatch_focal(arguments, [&](const auto& inputs, auto focus) {
    Backend::template forward<focus()>(inputs, logits.numel(), loss);
  });
  return loss;
}

template <typename Backend>
Tensor sigmoid_focal_loss_backward(const Tensor& grad_loss, const Tensor& logits,
                                   const Tensor& labels, std::optional<Tensor> mask, double alpha,
                                   double gamma) {
  const FocalArguments arguments(logits, labels, mask, alpha, gamma);
  check_grad_loss(kFocalOp, grad_loss, {"logits", logits});
  const typename Backend::DeviceGuard guard(logits);
  Tensor grad_logits = new_tensor(logits, logits.sizes());
  dispatch_focal(arguments, [&](const auto& inputs, auto focus) {
    Backend::template backward<focus()>(inputs, logits.numel(), grad_loss, grad_logits);
  });
  return grad_logits;
}

// The loss, and its gradient for an incoming gradient that is known beforehand.
template <typename Backend>
std::tuple<Tensor, Tensor> sigmoid_focal_loss_with_gradient(const Tensor& grad_loss,
                                                            const Tensor& logits,
                                                            const Tensor& labels,
                                                            std::optional<Tensor> mask,
                                                            double alpha, double gamma) {
  const FocalArguments arguments(logits, labels, mask, alpha, gamma);
  check_grad_loss(kFocalOp, grad_loss, {"logits", logits});
  const typename Backend::DeviceGuard guard(logits);
  Tensor loss = new_tensor(logits, {});
  Tensor grad_logits = new_tensor(logits, logits.sizes());
  dispatch_focal(arguments, [&](const auto& inputs, auto focus) {
    Backend::template forward_and_backward<focus()>(inputs, logits.numel(), grad_loss, loss,
                                                    grad_logits);
  });
  return {loss, grad_logits};
}

}  // namespace host
}  // namespace resobj
