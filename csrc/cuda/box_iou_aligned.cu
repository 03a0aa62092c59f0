// box_iou_aligned on CUDA: one thread per pair.

#include "loss_sum.h"
#include "resobj/box_iou_aligned_host.h"

namespace resobj {
namespace {

template <Overlap kind, typename T>
struct WriteOverlap {
  const T* pred;
  const T* target;
  T* out;

  __device__ void operator()(int64_t begin, int offset) const {
    const int64_t i = begin + offset;
    out[i] = aligned_overlap<kind>(get_box(pred, i), get_box(target, i));
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

struct Cuda : CudaBackend {
  template <Overlap kind, typename T>
  static void forward(const AlignedArguments& arguments, Tensor& result) {
    const WriteOverlap<kind, T> write{arguments.pred.const_data_ptr<T>(),
                                      arguments.target.const_data_ptr<T>(),
                                      result.mutable_data_ptr<T>()};
    for_each(arguments.count(), write, result);
  }

  template <Overlap kind, typename T>
  static void backward(const AlignedArguments& arguments, const Tensor& grad, Tensor& grad_pred,
                       Tensor& grad_target) {
    const WriteGradients<kind, T> write{
        grad.const_data_ptr<T>(), arguments.pred.const_data_ptr<T>(),
        arguments.target.const_data_ptr<T>(), grad_pred.mutable_data_ptr<T>(),
        grad_target.mutable_data_ptr<T>()};
    for_each(arguments.count(), write, grad_pred);
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CUDA, m) {
  using namespace resobj;
  m.impl("box_iou_aligned", TORCH_BOX(&host::box_iou_aligned<Cuda>));
  m.impl("_box_iou_aligned_backward", TORCH_BOX(&host::box_iou_aligned_backward<Cuda>));
}
