// balanced_l1_loss on CUDA: one thread per difference, two launches for the sum, one for the
// gradient.

#include "loss_sum.h"
#include "resobj/balanced_l1_loss_host.h"

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

struct Cuda : CudaBackend {
  template <typename T>
  static void forward(const BalancedInputs<T>& in, int64_t count, Tensor& loss) {
    sum_terms<T>(count, Term<T>{in}, loss);
  }

  template <typename T>
  static void backward(const BalancedInputs<T>& in, int64_t count, const Tensor& grad_loss,
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
  m.impl("balanced_l1_loss", TORCH_BOX(&host::balanced_l1_loss<Cuda>));
  m.impl("_balanced_l1_loss_backward", TORCH_BOX(&host::balanced_l1_loss_backward<Cuda>));
}
