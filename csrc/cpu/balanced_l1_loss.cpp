// balanced_l1_loss on the CPU: one loop over the differences.

#include "loss_sum.h"
#include "resobj/balanced_l1_loss_host.h"

namespace resobj {
namespace {

struct Cpu : CpuBackend {
  template <typename T>
  static void forward(const BalancedInputs<T>& in, int64_t count, Tensor& loss) {
    const auto fill = [=](int64_t begin, int64_t end, T* __restrict__ terms) {
      for (int64_t i = begin; i < end; ++i) {
        terms[i - begin] = balanced_l1(in.pred[i] - in.target[i], in.loss);
      }
    };
    sum_terms<T>(count, fill, loss);
  }

  template <typename T>
  static void backward(const BalancedInputs<T>& in, int64_t count, const Tensor& grad_loss,
                       Tensor& grad_pred) {
    const T scale = *grad_loss.const_data_ptr<T>();
    T* __restrict__ out = grad_pred.mutable_data_ptr<T>();
    for_each_chunk(count, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        out[i] = scale * balanced_l1_slope(in.pred[i] - in.target[i], in.loss);
      }
    });
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  using namespace resobj;
  m.impl("balanced_l1_loss", TORCH_BOX(&host::balanced_l1_loss<Cpu>));
  m.impl("_balanced_l1_loss_backward", TORCH_BOX(&host::balanced_l1_loss_backward<Cpu>));
}
