// sigmoid_focal_loss on the CPU. A chunk of the flattened logits is first computed as if every
// class were absent, in branch-free vector loops; then the few logits of a present class are
// corrected and ignored anchors are set to zero.

#include <algorithm>

#include "logit_blocks.h"
#include "loss_sum.h"
#include "resobj/sigmoid_focal_loss_host.h"

namespace resobj {
namespace {

// `absent` gets a logit, its small_exponential and the range; `present` gets a logit.
template <typename T, typename Absent, typename Present>
void fill_chunk(const FocalInputs<T>& in, int64_t begin, int64_t end, T* __restrict__ out,
                const Absent& absent, const Present& present) {
  const int64_t count = end - begin;
  const int64_t first = begin / in.num_classes;
  const int64_t last = (end - 1) / in.num_classes;
  int64_t anchor = first;
  while (anchor <= last && !in.counts(anchor)) ++anchor;
  if (anchor > last) {
    std::fill(out, out + count, T(0));
    return;
  }
  const T* logits = in.logits + begin;
  for_each_logit_block(logits, count, [&](int64_t from, int64_t size, const T* e, auto range) {
    for (int64_t j = 0; j < size; ++j) out[from + j] = absent(logits[from + j], e[j], range);
  });
  for (anchor = first; anchor <= last; ++anchor) {
    const int64_t row = anchor * in.num_classes - begin;
    if (!in.counts(anchor)) {
      const int64_t from = std::max<int64_t>(row, 0);
      std::fill(out + from, out + std::min(row + in.num_classes, count), T(0));
    } else if (in.labels[anchor] < in.num_classes) {
      const int64_t j = row + in.labels[anchor];
      if (j >= 0 && j < count) out[j] = present(logits[j]);
    }
  }
}

struct Cpu : CpuBackend {
  template <Focus focus, typename T>
  static void forward(const FocalInputs<T>& in, int64_t count, Tensor& loss) {
    const T gamma = in.gamma;
    const T negative = in.negative_weight;
    const T positive = in.positive_weight;
    const auto fill = [&](int64_t begin, int64_t end, T* terms) {
      fill_chunk(
          in, begin, end, terms,
          [=](T x, T e, auto range) { return negative * focal_loss<focus, range()>(x, e, gamma); },
          [=](T x) { return positive * focal_loss<focus>(-x, gamma); });
    };
    sum_terms<T>(count, fill, loss);
  }

  template <Focus focus, typename T>
  static void backward(const FocalInputs<T>& in, int64_t count, const Tensor& grad_loss,
                       Tensor& grad_logits) {
    const T scale = *grad_loss.const_data_ptr<T>();
    const T gamma = in.gamma;
    const T negative = in.negative_weight * scale;
    const T positive = -in.positive_weight * scale;
    T* out = grad_logits.mutable_data_ptr<T>();
    for_each_chunk(count, [&](int64_t begin, int64_t end) {
      fill_chunk(
          in, begin, end, out + begin,
          [=](T x, T e, auto range) { return negative * focal_slope<focus, range()>(x, e, gamma); },
          [=](T x) { return positive * focal_slope<focus>(-x, gamma); });
    });
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  using namespace resobj;
  m.impl("sigmoid_focal_loss", TORCH_BOX(&host::sigmoid_focal_loss<Cpu>));
  m.impl("_sigmoid_focal_loss_backward", TORCH_BOX(&host::sigmoid_focal_loss_backward<Cpu>));
}
