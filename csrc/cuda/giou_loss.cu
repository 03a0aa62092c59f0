// giou_loss on CUDA: one thread per pair, two launches for the sum, one for the gradient.

#include "loss_sum.h"
#include "resobj/giou_loss_host.h"

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

struct Cuda : CudaBackend {
  template <typename T>
  static void forward(const GiouInputs<T>& in, int64_t count, Tensor& loss) {
    sum_terms<T>(count, Term<T>{in}, loss);
  }

  template <typename T>
  static void backward(const GiouInputs<T>& in, int64_t count, const Tensor& grad_loss,
                       Tensor& grad_pred) {
    const WriteGradient<T> write{in, grad_loss.const_data_ptr<T>(),
                                 grad_pred.mutable_data_ptr<T>()};
    for_each(count, write, grad_pred);
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CUDA, m) {
  using namespace resobj;
  m.impl("giou_loss", TORCH_BOX(&host::giou_loss<Cuda>));
  m.impl("_giou_loss_backward", TORCH_BOX(&host::giou_loss_backward<Cuda>));
}
