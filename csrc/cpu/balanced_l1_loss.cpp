// balanced_l1_loss on the CPU: one loop over the differences.

#include "loss_sum.h"
#include "resobj/balanced_l1_loss_host.h"

namespace resobj {
namespace {

// Fills `terms` and `gradient`, as far as they are among the results; `scale` is the factor of the
// gradient.
template <Results results, typename T>
void fill_chunk(const BalancedInputs<T>& in, int64_t begin, int64_t end, T scale,
                T* __restrict__ terms, T* __restrict__ gradient) {
  const T* pred = in.pred + begin;
  const T* target = in.target + begin;
  for (int64_t j = 0; j < end - begin; ++j) {
    const T difference = pred[j] - target[j];
    if (results != Results::kGradient) terms[j] = balanced_l1(difference, in.loss);
    if (results != Results::kLoss) gradient[j] = scale * balanced_l1_slope(difference, in.loss);
  }
}

struct Cpu : CpuBackend {
  template <typename T>
  static void forward(const BalancedInputs<T>& in, int64_t count, Tensor& loss) {
    const auto fill = [=](int64_t begin, int64_t end, T* terms) {
      fill_chunk<Results::kLoss, T>(in, begin, end, T(1), terms, nullptr);
    };
    sum_terms<T>(count, fill, loss);
  }

  template <typename T>
  static void backward(const BalancedInputs<T>& in, int64_t count, const Tensor& grad_loss,
                       Tensor& grad_pred) {
    const T scale = *grad_loss.const_data_ptr<T>();
    T* out = grad_pred.mutable_data_ptr<T>();
    for_each_chunk(count, [=](int64_t begin, int64_t end) {
      fill_chunk<Results::kGradient, T>(in, begin, end, scale, nullptr, out + begin);
    });
  }

  template <typename T>
  static void forward_and_backward(const BalancedInputs<T>& in, int64_t count,
                                   const Tensor& grad_loss, Tensor& loss, Tensor& grad_pred) {
    const T scale = *grad_loss.const_data_ptr<T>();
    T* out = grad_pred.mutable_data_ptr<T>();
    const auto fill = [=](int64_t begin, int64_t end, T* terms) {
      fill_chunk<Results::kBoth, T>(in, begin, end, scale, terms, out + begin);
    };
    sum_terms<T>(count, fill, loss);
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  using namespace resobj;
  m.impl("balanced_l1_loss", TORCH_BOX(&host::balanced_l1_loss<Cpu>));
  m.impl("_balanced_l1_loss_backward", TORCH_BOX(&host::balanced_l1_loss_backward<Cpu>));
  m.impl("_balanced_l1_loss_with_gradient", TORCH_BOX(&host::balanced_l1_loss_with_gradient<Cpu>));
}
