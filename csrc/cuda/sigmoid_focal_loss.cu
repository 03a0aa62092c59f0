// sigmoid_focal_loss on CUDA: one thread per logit, two launches for the sum, one for the gradient.

#include "loss_sum.h"
#include "resobj/sigmoid_focal_loss_host.h"

namespace resobj {
namespace {

enum class Target { kNothing, kAbsent, kPresent };

// The target of the logit begin + offset. 64-bit division is slow; here it is uniform per block.
template <typename T>
__device__ Target target_of(const FocalInputs<T>& in, int64_t begin, int offset) {
  const int64_t first = begin / in.num_classes;
  const unsigned position = static_cast<unsigned>(begin - first * in.num_classes) + offset;
  const unsigned num_classes = static_cast<unsigned>(in.num_classes);
  const int64_t anchor = first + position / num_classes;
  if (!in.counts(anchor)) return Target::kNothing;
  return in.labels[anchor] == position % num_classes ? Target::kPresent : Target::kAbsent;
}

template <Focus focus, typename T>
struct Term {
  FocalInputs<T> in;

  __device__ T operator()(int64_t begin, int offset) const {
    const Target target = target_of(in, begin, offset);
    if (target == Target::kNothing) return T(0);
    const T x = in.logits[begin + offset];
    const bool present = target == Target::kPresent;
    const T weight = present ? in.positive_weight : in.negative_weight;
    return weight * focal_loss<focus>(present ? -x : x, in.gamma);
  }
};

template <Focus focus, typename T>
struct WriteGradient {
  FocalInputs<T> in;
  const T* grad_loss;
  T* grad_logits;

  __device__ void operator()(int64_t begin, int offset) const {
    const Target target = target_of(in, begin, offset);
    T gradient = T(0);
    if (target != Target::kNothing) {
      const T x = in.logits[begin + offset];
      const bool present = target == Target::kPresent;
      const T weight = present ? -in.positive_weight : in.negative_weight;
      gradient = weight * *grad_loss * focal_slope<focus>(present ? -x : x, in.gamma);
    }
    grad_logits[begin + offset] = gradient;
  }
};

struct Cuda : CudaBackend {
  template <Focus focus, typename T>
  static void forward(const FocalInputs<T>& in, int64_t count, Tensor& loss) {
    sum_terms<T>(count, Term<focus, T>{in}, loss);
  }

  template <Focus focus, typename T>
  static void backward(const FocalInputs<T>& in, int64_t count, const Tensor& grad_loss,
                       Tensor& grad_logits) {
    const WriteGradient<focus, T> write{in, grad_loss.const_data_ptr<T>(),
                                        grad_logits.mutable_data_ptr<T>()};
    for_each(count, write, grad_logits);
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CUDA, m) {
  using namespace resobj;
  m.impl("sigmoid_focal_loss", TORCH_BOX(&host::sigmoid_focal_loss<Cuda>));
  m.impl("_sigmoid_focal_loss_backward", TORCH_BOX(&host::sigmoid_focal_loss_backward<Cuda>));
}
