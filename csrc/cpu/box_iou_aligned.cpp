// box_iou_aligned on the CPU: one loop over the pairs. To sort the corners for GIoU takes half as
// long as the rest, and they are sorted almost always: so a chunk is computed as if they were, and
// once more if a box is crossed.

#include "box_lanes.h"
#include "loss_sum.h"
#include "resobj/box_iou_aligned_host.h"

namespace resobj {
namespace {

template <typename T>
bool crossed(const Box<T>& box) {
  return (box.x1 > box.x2) | (box.y1 > box.y2);
}

// Calls each(i, a, b) for the pairs [begin, end); whether a box of them is crossed.
template <typename T, typename F>
bool for_each_pair(const T* pred, const T* target, int64_t begin, int64_t end, const F& each) {
  typename BoxLanes<T>::Element any = 0;  // as wide as T, for vectors of as many
  for (int64_t i = begin; i < end; ++i) {
    const Box<T> a = get_box(pred, i);
    const Box<T> b = get_box(target, i);
    each(i, a, b);
    any |= crossed(a) | crossed(b);
  }
  return any;
}

struct Cpu : CpuBackend {
  template <Overlap kind, typename T>
  static void forward(const AlignedArguments& arguments, Tensor& result) {
    const T* pred = arguments.pred.const_data_ptr<T>();
    const T* target = arguments.target.const_data_ptr<T>();
    T* __restrict__ out = result.mutable_data_ptr<T>();
    for_each_chunk(arguments.count(), [=](int64_t begin, int64_t end) {
      const bool any = for_each_pair(pred, target, begin, end, [=](int64_t i, auto a, auto b) {
        out[i] = overlap_as_is<kind>(a, b);
      });
      if (kind != Overlap::kGiou || !any) return;
      for_each_pair(pred, target, begin, end,
                    [=](int64_t i, auto a, auto b) { out[i] = aligned_overlap<kind>(a, b); });
    });
  }

  template <Overlap kind, typename T>
  static void backward(const AlignedArguments& arguments, const Tensor& grad, Tensor& grad_pred,
                       Tensor& grad_target) {
    const T* scale = grad.const_data_ptr<T>();
    const T* pred = arguments.pred.const_data_ptr<T>();
    const T* target = arguments.target.const_data_ptr<T>();
    T* __restrict__ pred_out = grad_pred.mutable_data_ptr<T>();
    T* __restrict__ target_out = grad_target.mutable_data_ptr<T>();
    for_each_chunk(arguments.count(), [=](int64_t begin, int64_t end) {
      const bool any = for_each_pair(pred, target, begin, end, [=](int64_t i, auto a, auto b) {
        set_box(pred_out, i, gradient_as_is<kind>(a, b, scale[i]));
        set_box(target_out, i, gradient_as_is<kind>(b, a, scale[i]));
      });
      if (kind != Overlap::kGiou || !any) return;
      for_each_pair(pred, target, begin, end, [=](int64_t i, auto a, auto b) {
        set_box(pred_out, i, overlap_gradient<kind>(a, b, scale[i]));
        set_box(target_out, i, overlap_gradient<kind>(b, a, scale[i]));
      });
    });
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  using namespace resobj;
  m.impl("box_iou_aligned", TORCH_BOX(&host::box_iou_aligned<Cpu>));
  m.impl("_box_iou_aligned_backward", TORCH_BOX(&host::box_iou_aligned_backward<Cpu>));
}
