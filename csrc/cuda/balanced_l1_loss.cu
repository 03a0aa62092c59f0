// balanced_l1_loss on CUDA: one thread per difference, two launches for the sum, one for the
// gradient.

#include "loss_sum.h"
#include "resobj/balanced_l1_math.h"
#include "resobj/box_loss_checks.h"

namespace resobj {
namespace {

template <typename T>
struct Term {
  const T* pred;
  const T* target;
  BalancedL1<T> loss;

  __device__ T operator()(int64_t begin, int offset) const {
    return balanced_l1(pred[begin + offset] - target[begin + offset], loss);
  }
};

template <typename T>
struct WriteGradient {
  const T* grad_loss;
  const T* pred;
  const T* target;
  BalancedL1<T> loss;
  T* grad_pred;

  __device__ void operator()(int64_t begin, int offset) const {
    const int64_t i = begin + offset;
    grad_pred[i] = *grad_loss * balanced_l1_slope(pred[i] - target[i], loss);
  }
};

Tensor balanced_l1_loss(const Tensor& pred, const Tensor& target, double alpha, double gamma,
                        double beta) {
  check_balanced_l1(pred, target, alpha, gamma, beta);
  const torch::stable::accelerator::DeviceGuard guard(pred.get_device_index());
  const Tensor p = torch::stable::contiguous(pred);
  const Tensor t = torch::stable::contiguous(target);
  Tensor loss = torch::stable::new_empty(p, {});
  dispatch_float(p, [&](auto scalar) {
    using T = decltype(scalar);
    const Term<T> term{p.const_data_ptr<T>(), t.const_data_ptr<T>(),
                       BalancedL1<T>(alpha, gamma, beta)};
    sum_terms<T>(p.numel(), term, loss);
  });
  return loss;
}

Tensor balanced_l1_loss_backward(const Tensor& grad_loss, const Tensor& pred, const Tensor& target,
                                 double alpha, double gamma, double beta) {
  check_balanced_l1(pred, target, alpha, gamma, beta);
  check_grad_loss(kBalancedOp, grad_loss, {"pred", pred});
  const torch::stable::accelerator::DeviceGuard guard(pred.get_device_index());
  const Tensor p = torch::stable::contiguous(pred);
  const Tensor t = torch::stable::contiguous(target);
  Tensor grad_pred = torch::stable::new_empty(p, p.sizes());
  dispatch_float(p, [&](auto scalar) {
    using T = decltype(scalar);
    const WriteGradient<T> write{grad_loss.const_data_ptr<T>(), p.const_data_ptr<T>(),
                                 t.const_data_ptr<T>(), BalancedL1<T>(alpha, gamma, beta),
                                 grad_pred.mutable_data_ptr<T>()};
    for_each(p.numel(), write, grad_pred);
  });
  return grad_pred;
}

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CUDA, m) {
  m.impl("balanced_l1_loss", TORCH_BOX(&resobj::balanced_l1_loss));
  m.impl("_balanced_l1_loss_backward", TORCH_BOX(&resobj::balanced_l1_loss_backward));
}
