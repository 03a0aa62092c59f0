// giou_loss on CUDA: one thread per pair, two launches for the sum, one for the gradient.

#include "loss_sum.h"
#include "resobj/box_loss_checks.h"

namespace resobj {
namespace {

template <typename T>
struct Term {
  GiouInputs<T> in;

  __device__ T operator()(int64_t begin, int offset) const {
    const int64_t i = begin + offset;
    if (in.mask != nullptr && !in.mask[i]) return T(0);
    return giou_loss(get_box(in.pred, i), get_box(in.target, i));
  }
};

template <typename T>
struct WriteGradient {
  GiouInputs<T> in;
  const T* grad_loss;
  T* grad_pred;

  __device__ void operator()(int64_t begin, int offset) const {
    const int64_t i = begin + offset;
    Box<T> gradient{};
    if (in.mask == nullptr || in.mask[i]) {
      gradient = giou_loss_gradient(get_box(in.pred, i), get_box(in.target, i), *grad_loss);
    }
    set_box(grad_pred, i, gradient);
  }
};

Tensor giou_loss_sum(const Tensor& pred, const Tensor& target, std::optional<Tensor> mask) {
  const GiouArguments arguments(pred, target, mask);
  const torch::stable::accelerator::DeviceGuard guard(pred.get_device_index());
  Tensor loss = new_tensor(pred, {});
  dispatch_float(pred, [&](auto scalar) {
    using T = decltype(scalar);
    sum_terms<T>(arguments.count(), Term<T>{arguments.inputs<T>()}, loss);
  });
  return loss;
}

Tensor giou_loss_backward(const Tensor& grad_loss, const Tensor& pred, const Tensor& target,
                          std::optional<Tensor> mask) {
  const GiouArguments arguments(pred, target, mask);
  check_grad_loss(kGiouOp, grad_loss, {"pred", pred});
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
  m.impl("giou_loss", TORCH_BOX(&resobj::giou_loss_sum));
  m.impl("_giou_loss_backward", TORCH_BOX(&resobj::giou_loss_backward));
}
