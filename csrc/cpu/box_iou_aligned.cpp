// box_iou_aligned on the CPU: one loop over the pairs.

#include <string>
#include <tuple>

#include "loss_sum.h"
#include "resobj/box_checks.h"
#include "resobj/box_gradients.h"

namespace resobj {
namespace {

template <Overlap kind, typename T>
void overlaps(const T* pred, const T* target, int64_t count, T* __restrict__ out) {
  for_each_chunk(count, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Box<T> a = get_box(pred, i);
      const Box<T> b = get_box(target, i);
      out[i] = overlap<kind>(a, area(a), b, area(b));
    }
  });
}

template <Overlap kind, typename T>
void gradients(const T* grad, const T* pred, const T* target, int64_t count,
               T* __restrict__ grad_pred, T* __restrict__ grad_target) {
  for_each_chunk(count, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Box<T> a = get_box(pred, i);
      const Box<T> b = get_box(target, i);
      set_box(grad_pred, i, overlap_gradient<kind>(a, b, grad[i]));
      set_box(grad_target, i, overlap_gradient<kind>(b, a, grad[i]));
    }
  });
}

Tensor box_iou_aligned(const Tensor& pred, const Tensor& target, const std::string& kind) {
  const AlignedArguments arguments(pred, target, kind);
  Tensor result = new_tensor(pred, {arguments.count()});
  dispatch_float(pred, [&](auto scalar) {
    using T = decltype(scalar);
    const auto run = arguments.giou ? overlaps<Overlap::kGiou, T> : overlaps<Overlap::kIou, T>;
    run(arguments.pred.const_data_ptr<T>(), arguments.target.const_data_ptr<T>(), arguments.count(),
        result.mutable_data_ptr<T>());
  });
  return result;
}

std::tuple<Tensor, Tensor> box_iou_aligned_backward(const Tensor& grad, const Tensor& pred,
                                                    const Tensor& target, const std::string& kind) {
  const AlignedArguments arguments(pred, target, kind);
  const Tensor g = arguments.gradient(grad);
  Tensor grad_pred = new_tensor(pred, pred.sizes());
  Tensor grad_target = new_tensor(pred, pred.sizes());
  dispatch_float(pred, [&](auto scalar) {
    using T = decltype(scalar);
    const auto run = arguments.giou ? gradients<Overlap::kGiou, T> : gradients<Overlap::kIou, T>;
    run(g.const_data_ptr<T>(), arguments.pred.const_data_ptr<T>(),
        arguments.target.const_data_ptr<T>(), arguments.count(), grad_pred.mutable_data_ptr<T>(),
        grad_target.mutable_data_ptr<T>());
  });
  return {grad_pred, grad_target};
}

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  m.impl("box_iou_aligned", TORCH_BOX(&resobj::box_iou_aligned));
  m.impl("_box_iou_aligned_backward", TORCH_BOX(&resobj::box_iou_aligned_backward));
}
