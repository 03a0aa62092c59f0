// balanced_l1_loss on the host, shared by both backends. A backend has
//   forward(inputs, count, loss)                    writes the sum over the elements
//   backward(inputs, count, grad_loss, grad_pred)
// and, if it has both in one pass,
//   forward_and_backward(inputs, count, grad_loss, loss, grad_pred)
#pragma once

#include <tuple>

#include "resobj/balanced_l1_loss_math.h"
#include "resobj/tensor_checks.h"

namespace resobj {

constexpr const char* kBalancedOp = "balanced_l1_loss";

// The arguments of balanced_l1_loss, checked and contiguous.
struct BalancedArguments {
  Tensor pred;
  Tensor target;
  double alpha;
  double gamma;
  double beta;

  BalancedArguments(const Tensor& p, const Tensor& t, double alpha, double gamma, double beta)
      : alpha(alpha), gamma(gamma), beta(beta) {
    check_devices(kBalancedOp, {{"pred", p}, {"target", t}});
    check_dtypes(kBalancedOp, {{"pred", p}, {"target", t}});
    check_same_shape(kBalancedOp, {"target", t}, {"pred", p});
    STD_TORCH_CHECK(is_positive(p, alpha) && is_positive(p, gamma) && is_positive(p, beta),
                    kBalancedOp, ": alpha, gamma and beta must be positive");
    STD_TORCH_CHECK(gamma >= alpha / 1000 && gamma <= 80 * alpha, kBalancedOp,
                    ": gamma must be between alpha / 1000 and 80 alpha");
    pred = as_contiguous(p);
    target = as_contiguous(t);
  }

  int64_t count() const { return pred.numel(); }

  template <typename T>
  BalancedInputs<T> inputs() const {
    return BalancedInputs<T>{pred.const_data_ptr<T>(), target.const_data_ptr<T>(),
                             BalancedL1<T>(alpha, gamma, beta)};
  }
};

namespace host {

template <typename Backend>
Tensor balanced_l1_loss(const Tensor& pred, const Tensor& target, double alpha, double gamma,
                        double beta) {
  const BalancedArguments arguments(pred, target, alpha, gamma, beta);
  const typename Backend::DeviceGuard guard(pred);
  Tensor loss = new_tensor(pred, {});
  dispatch_float(pred, [&](auto scalar) {
    Backend::forward(arguments.inputs<decltype(scalar)>(), arguments.count(), loss);
  });
  return loss;
}

template <typename Backend>
Tensor balanced_l1_loss_backward(const Tensor& grad_loss, const Tensor& pred, const Tensor& target,
                                 double alpha, double gamma, double beta) {
  const BalancedArguments arguments(pred, target, alpha, gamma, beta);
  check_grad_loss(kBalancedOp, grad_loss, {"pred", pred});
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
std::tuple<Tensor, Tensor> balanced_l1_loss_with_gradient(const Tensor& grad_loss,
                                                          const Tensor& pred, const Tensor& target,
                                                          double alpha, double gamma, double beta) {
  const BalancedArguments arguments(pred, target, alpha, gamma, beta);
  check_grad_loss(kBalancedOp, grad_loss, {"pred", pred});
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
