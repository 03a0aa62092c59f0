// box_iou_aligned on the CPU: one loop over the pairs.

#include "loss_sum.h"
#include "resobj/box_iou_aligned_host.h"

namespace resobj {
namespace {

struct Cpu : CpuBackend {
  template <Overlap kind, typename T>
  static void forward(const AlignedArguments& arguments, Tensor& result) {
    const T* pred = arguments.pred.const_data_ptr<T>();
    const T* target = arguments.target.const_data_ptr<T>();
    T* __restrict__ out = result.mutable_data_ptr<T>();
    for_each_chunk(arguments.count(), [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        out[i] = aligned_overlap<kind>(get_box(pred, i), get_box(target, i));
      }
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
      for (int64_t i = begin; i < end; ++i) {
        const Box<T> a = get_box(pred, i);
        const Box<T> b = get_box(target, i);
        set_box(pred_out, i, overlap_gradient<kind>(a, b, scale[i]));
        set_box(target_out, i, overlap_gradient<kind>(b, a, scale[i]));
      }
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
