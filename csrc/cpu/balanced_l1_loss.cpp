// balanced_l1_loss on the CPU: one loop over the differences.

#include "loss_sum.h"
#include "resobj/box_loss_checks.h"

namespace resobj {
namespace {

template <typename T>
double forward(const BalancedInputs<T>& in, int64_t count) {
  return sum_terms<T>(count, [=](int64_t begin, int64_t end, T* __restrict__ terms) {
    for (int64_t i = begin; i < end; ++i) {
      terms[i - begin] = balanced_l1(in.pred[i] - in.target[i], in.loss);
    }
  });
}

template <typename T>
void backward(const BalancedInputs<T>& in, int64_t count, T grad_loss, T* __restrict__ grad_pred) {
  for_each_chunk(count, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      grad_pred[i] = grad_loss * balanced_l1_slope(in.pred[i] - in.target[i], in.loss);
    }
  });
}

Tensor balanced_l1_loss(const Tensor& pred, const Tensor& target, double alpha, double gamma,
                        double beta) {
  const BalancedArguments arguments(pred, target, alpha, gamma, beta);
  Tensor loss = new_tensor(pred, {});
  dispatch_float(pred, [&](auto scalar) {
    using T = decltype(scalar);
    *loss.mutable_data_ptr<T>() = static_cast<T>(forward(arguments.inputs<T>(), arguments.count()));
  });
  return loss;
}

Tensor balanced_l1_loss_backward(const Tensor& grad_loss, const Tensor& pred, const Tensor& target,
                                 double alpha, double gamma, double beta) {
  const BalancedArguments arguments(pred, target, alpha, gamma, beta);
  check_grad_loss(kBalancedOp, grad_loss, {"pred", pred});
  Tensor grad_pred = new_tensor(pred, pred.sizes());
  dispatch_float(pred, [&](auto scalar) {
    using T = decltype(scalar);
    backward(arguments.inputs<T>(), arguments.count(), *grad_loss.const_data_ptr<T>(),
             grad_pred.mutable_data_ptr<T>());
  });
  return grad_pred;
}

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  m.impl("balanced_l1_loss", TORCH_BOX(&resobj::balanced_l1_loss));
  m.impl("_balanced_l1_loss_backward", TORCH_BOX(&resobj::balanced_l1_loss_backward));
}
