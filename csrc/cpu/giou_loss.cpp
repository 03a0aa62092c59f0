// giou_loss on the CPU. A chunk is computed as if every pair counted, in one branch-free loop; then
// pairs outside the mask are set to zero.

#include <algorithm>

#include "loss_sum.h"
#include "resobj/giou_loss_host.h"

namespace resobj {
namespace {

bool any(const bool* mask, int64_t begin, int64_t end) {
  return mask == nullptr || std::find(mask + begin, mask + end, true) != mask + end;
}

struct Cpu : CpuBackend {
  template <typename T>
  static void forward(const GiouInputs<T>& in, int64_t count, Tensor& loss) {
    const auto fill = [=](int64_t begin, int64_t end, T* __restrict__ terms) {
      if (!any(in.mask, begin, end)) return std::fill(terms, terms + (end - begin), T(0));
      for (int64_t i = begin; i < end; ++i) {
        terms[i - begin] = giou_loss(get_box(in.pred, i), get_box(in.target, i));
      }
      if (in.mask == nullptr) return;
      for (int64_t i = begin; i < end; ++i) {
        if (!in.mask[i]) terms[i - begin] = T(0);
      }
    };
    sum_terms<T>(count, fill, loss);
  }

  template <typename T>
  static void backward(const GiouInputs<T>& in, int64_t count, const Tensor& grad_loss,
                       Tensor& grad_pred) {
    const T scale = *grad_loss.const_data_ptr<T>();
    T* __restrict__ out = grad_pred.mutable_data_ptr<T>();
    for_each_chunk(count, [=](int64_t begin, int64_t end) {
      if (!any(in.mask, begin, end)) return std::fill(out + 4 * begin, out + 4 * end, T(0));
      for (int64_t i = begin; i < end; ++i) {
        set_box(out, i, giou_loss_gradient(get_box(in.pred, i), get_box(in.target, i), scale));
      }
      if (in.mask == nullptr) return;
      for (int64_t i = begin; i < end; ++i) {
        if (!in.mask[i]) set_box(out, i, Box<T>{});
      }
    });
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  using namespace resobj;
  m.impl("giou_loss", TORCH_BOX(&host::giou_loss<Cpu>));
  m.impl("_giou_loss_backward", TORCH_BOX(&host::giou_loss_backward<Cpu>));
}
