// box_iou_aligned on CUDA: one thread per pair.

#include <string>
#include <tuple>

#include "loss_sum.h"
#include "resobj/box_checks.h"
#include "resobj/box_gradients.h"

namespace resobj {
namespace {

template <Overlap kind, typename T>
struct WriteOverlap {
  const T* pred;
  const T* target;
  T* out;

  __device__ void operator()(int64_t begin, int offset) const {
    const Box<T> a = get_box(pred, begin + offset);
    const Box<T> b = get_box(target, begin + offset);
    out[begin + offset] = overlap<kind>(a, area(a), b, area(b));
  }
};

template <Overlap kind, typename T>
struct WriteGradients {
  const T* grad;
  const T* pred;
  const T* target;
  T* grad_pred;
  T* grad_target;

  __device__ void operator()(int64_t begin, int offset) const {
    const int64_t i = begin + offset;
    const Box<T> a = get_box(pred, i);
    const Box<T> b = get_box(target, i);
    set_box(grad_pred, i, overlap_gradient<kind>(a, b, grad[i]));
    set_box(grad_target, i, overlap_gradient<kind>(b, a, grad[i]));
  }
};

template <Overlap kind, typename T>
void overlaps(const AlignedArguments& arguments, Tensor& out) {
  const WriteOverlap<kind, T> write{arguments.pred.const_data_ptr<T>(),
                                    arguments.target.const_data_ptr<T>(),
                                    out.mutable_data_ptr<T>()};
  for_each(arguments.count(), write, out);
}

template <Overlap kind, typename T>
void gradients(const AlignedArguments& arguments, const Tensor& grad, Tensor& grad_pred,
               Tensor& grad_target) {
  const WriteGradients<kind, T> write{grad.const_data_ptr<T>(), arguments.pred.const_data_ptr<T>(),
                                      arguments.target.const_data_ptr<T>(),
                                      grad_pred.mutable_data_ptr<T>(),
                                      grad_target.mutable_data_ptr<T>()};
  for_each(arguments.count(), write, grad_pred);
}

Tensor box_iou_aligned(const Tensor& pred, const Tensor& target, const std::string& kind) {
  const AlignedArguments arguments(pred, target, kind);
  const torch::stable::accelerator::DeviceGuard guard(pred.get_device_index());
  Tensor result = new_tensor(pred, {arguments.count()});
  dispatch_float(pred, [&](auto scalar) {
    using T = decltype(scalar);
    const auto run = arguments.giou ? overlaps<Overlap::kGiou, T> : overlaps<Overlap::kIou, T>;
    run(arguments, result);
  });
  return result;
}

std::tuple<Tensor, Tensor> box_iou_aligned_backward(const Tensor& grad, const Tensor& pred,
                                                    const Tensor& target, const std::string& kind) {
  const AlignedArguments arguments(pred, target, kind);
  const Tensor g = arguments.gradient(grad);
  const torch::stable::accelerator::DeviceGuard guard(pred.get_device_index());
  Tensor grad_pred = new_tensor(pred, pred.sizes());
  Tensor grad_target = new_tensor(pred, pred.sizes());
  dispatch_float(pred, [&](auto scalar) {
    using T = decltype(scalar);
    const auto run = arguments.giou ? gradients<Overlap::kGiou, T> : gradients<Overlap::kIou, T>;
    run(arguments, g, grad_pred, grad_target);
  });
  return {grad_pred, grad_target};
}

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CUDA, m) {
  m.impl("box_iou_aligned", TORCH_BOX(&resobj::box_iou_aligned));
  m.impl("_box_iou_aligned_backward", TORCH_BOX(&resobj::box_iou_aligned_backward));
}
