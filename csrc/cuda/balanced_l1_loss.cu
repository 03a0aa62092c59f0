// balanced_l1_loss on CUDA: one thread per difference, two launches for the sum, one for the
// gradient.

#include "loss_sum.h"
#include "resobj/box_loss_checks.h"

namespace resobj {
namespace {

template <typename T>
struct Term {
  BalancedInputs<T> in;

  __device__ T operator()(int64_t begin, int offset) const {
    return balanced_l1(in.pred[begin + offset] - in.target[begin + offset], in.loss);
  }
};

template <typename T>
struct WriteGradient {
  BalancedInputs<T> in;
  const T* grad_loss;
  T* grad_pred;

  __device__ void operator()(int64_t begin, int offset) const {
    const int64_t i = begin + offset;
    grad_pred[i] = *grad_loss * balanced_l1_slope(in.pred[i] - in.target[i], in.loss);
  }
};

Tensor balanced_l1_loss(const Tensor& pred, const Tensor& target, double alpha, double gamma,
                        double beta) {
  const BalancedArguments arguments(pred, target, alpha, gamma, beta);
  const torch::stable::accelerator::DeviceGuard guard(pred.get_device_index());
  Tensor loss = new_tensor(pred, {});
  dispatch_float(pred, [&](auto scalar) {
    using T = decltype(scalar);
    sum_terms<T>(arguments.count(), Term<T>{arguments.inputs<T>()}, loss);
  });
  return loss;
}

Tensor balanced_l1_loss_backward(const Tensor& grad_loss, const Tensor& pred, const Tensor& target,
                                 double alpha, double gamma, double beta) {
  const BalancedArguments arguments(pred, target, alpha, gamma, beta);
  check_grad_loss(kBalancedOp, grad_loss, {"pred", pred});
  const torch::stable::accelerator::DeviceGuard guard(pred.get_device_index());
  Tensor grad_pred = new_tensor(pred, pred.sizes());
  dispatch_float(pred, [&](auto scalar) {
    using T = decltype(scalar);
    const WriteGradient<T> write{arguments.inputs<T>(), grad_loss.const_data_ptr<T>(),
                                 grad_pred.mutable_data_ptr<T>()};
    for_each(arguments.count(), write, grad_pred);
  });
  return grad_pred;
}

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CUDA, m) {
  m.impl("balanced_l1_loss", TORCH_BOX(&resobj::balanced_l1_loss));
  m.impl("_balanced_l1_loss_backward", TORCH_BOX(&resobj::balanced_l1_loss_backward));
}
