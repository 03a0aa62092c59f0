// giou_loss on the CPU. A chunk is computed as if every pair counted, a block at a time in one
// branch-free loop; then pairs outside the mask are set to zero.

#include <algorithm>

#include "box_lanes.h"
#include "loss_sum.h"
#include "resobj/giou_loss_host.h"

namespace resobj {
namespace {

bool any(const bool* mask, int64_t begin, int64_t end) {
  return mask == nullptr || std::find(mask + begin, mask + end, true) != mask + end;
}

// Fills `terms` and `gradient`, as far as they are among the results; `scale` is the factor of the
// gradient.
template <Results results, typename T>
void fill_chunk(const GiouInputs<T>& in, int64_t begin, int64_t end, T scale, T* __restrict__ terms,
                T* __restrict__ gradient) {
  constexpr bool loss = results != Results::kGradient;
  constexpr bool slope = results != Results::kLoss;
  const int64_t count = end - begin;
  if (!any(in.mask, begin, end)) {
    if (loss) std::fill(terms, terms + count, T(0));
    if (slope) std::fill(gradient, gradient + 4 * count, T(0));
    return;
  }
  BoxBlock<T> pred, target, slopes;
  for (int64_t first = 0; first < count; first += BoxBlock<T>::kSize) {
    const int64_t size = std::min<int64_t>(BoxBlock<T>::kSize, count - first);
    pred.load(in.pred + 4 * (begin + first), size);
    target.load(in.target + 4 * (begin + first), size);
    for (int64_t j = 0; j < size; ++j) {
      if (loss) terms[first + j] = giou_loss(pred.get(j), target.get(j));
      if (slope) slopes.set(j, giou_loss_gradient(pred.get(j), target.get(j), scale));
    }
    if (slope) slopes.store(gradient + 4 * first, size);
  }
  if (in.mask == nullptr) return;
  for (int64_t j = 0; j < count; ++j) {
    if (in.mask[begin + j]) continue;
    if (loss) terms[j] = T(0);
    if (slope) set_box(gradient, j, Box<T>{});
  }
}

struct Cpu : CpuBackend {
  template <typename T>
  static void forward(const GiouInputs<T>& in, int64_t count, Tensor& loss) {
    const auto fill = [=](int64_t begin, int64_t end, T* terms) {
      fill_chunk<Results::kLoss, T>(in, begin, end, T(1), terms, nullptr);
    };
    sum_terms<T>(count, fill, loss);
  }

  template <typename T>
  static void backward(const GiouInputs<T>& in, int64_t count, const Tensor& grad_loss,
                       Tensor& grad_pred) {
    const T scale = *grad_loss.const_data_ptr<T>();
    T* out = grad_pred.mutable_data_ptr<T>();
    for_each_chunk(count, [=](int64_t begin, int64_t end) {
      fill_chunk<Results::kGradient, T>(in, begin, end, scale, nullptr, out + 4 * begin);
    });
  }

  template <typename T>
  static void forward_and_backward(const GiouInputs<T>& in, int64_t count, const Tensor& grad_loss,
                                   Tensor& loss, Tensor& grad_pred) {
    const T scale = *grad_loss.const_data_ptr<T>();
    T* out = grad_pred.mutable_data_ptr<T>();
    const auto fill = [=](int64_t begin, int64_t end, T* terms) {
      fill_chunk<Results::kBoth, T>(in, begin, end, scale, terms, out + 4 * begin);
    };
    sum_terms<T>(count, fill, loss);
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  using namespace resobj;
  m.impl("giou_loss", TORCH_BOX(&host::giou_loss<Cpu>));
  m.impl("_giou_loss_backward", TORCH_BOX(&host::giou_loss_backward<Cpu>));
  m.impl("_giou_loss_with_gradient", TORCH_BOX(&host::giou_loss_with_gradient<Cpu>));
}
