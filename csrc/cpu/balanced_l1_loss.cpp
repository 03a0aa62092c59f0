// balanced_l1_loss on the CPU: one loop over the differences.

#include "loss_sum.h"
#include "resobj/balanced_l1_math.h"
#include "resobj/box_loss_checks.h"

namespace resobj {
namespace {

template <typename T>
double forward(const T* pred, const T* target, int64_t count, const BalancedL1<T>& loss) {
  return sum_terms<T>(count, [=](int64_t begin, int64_t end, T* __restrict__ terms) {
    for (int64_t i = begin; i < end; ++i) {
      terms[i - begin] = balanced_l1(pred[i] - target[i], loss);
    }
  });
}

template <typename T>
void backward(T grad_loss, const T* pred, const T* target, int64_t count, const BalancedL1<T>& loss,
              T* __restrict__ grad_pred) {
  for_each_chunk(count, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      grad_pred[i] = grad_loss * balanced_l1_slope(pred[i] - target[i], loss);
    }
  });
}

Tensor balanced_l1_loss(const Tensor& pred, const Tensor& target, double alpha, double gamma,
                        double beta) {
  check_balanced_l1(pred, target, alpha, gamma, beta);
  const Tensor p = torch::stable::contiguous(pred);
  const Tensor t = torch::stable::contiguous(target);
  Tensor loss = torch::stable::new_empty(p, {});
  dispatch_float(p, [&](auto scalar) {
    using T = decltype(scalar);
    const double sum = forward(p.const_data_ptr<T>(), t.const_data_ptr<T>(), p.numel(),
                               BalancedL1<T>(alpha, gamma, beta));
    *loss.mutable_data_ptr<T>() = static_cast<T>(sum);
  });
  return loss;
}

Tensor balanced_l1_loss_backward(const Tensor& grad_loss, const Tensor& pred, const Tensor& target,
                                 double alpha, double gamma, double beta) {
  check_balanced_l1(pred, target, alpha, gamma, beta);
  check_grad_loss(kBalancedOp, grad_loss, {"pred", pred});
  const Tensor p = torch::stable::contiguous(pred);
  const Tensor t = torch::stable::contiguous(target);
  Tensor grad_pred = torch::stable::new_empty(p, p.sizes());
  dispatch_float(p, [&](auto scalar) {
    using T = decltype(scalar);
    backward(*grad_loss.const_data_ptr<T>(), p.const_data_ptr<T>(), t.const_data_ptr<T>(),
             p.numel(), BalancedL1<T>(alpha, gamma, beta), grad_pred.mutable_data_ptr<T>());
  });
  return grad_pred;
}

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  m.impl("balanced_l1_loss", TORCH_BOX(&resobj::balanced_l1_loss));
  m.impl("_balanced_l1_loss_backward", TORCH_BOX(&resobj::balanced_l1_loss_backward));
}
