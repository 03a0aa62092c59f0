// sigmoid_focal_loss on the CPU. A chunk of the flattened logits is first computed as if every
// class were absent, in branch-free vector loops; then the few logits of a present class are
// corrected and ignored anchors are set to zero.

#include <algorithm>

#include "logit_blocks.h"
#include "loss_sum.h"
#include "resobj/sigmoid_focal_loss_host.h"

namespace resobj {
namespace {

// Fills `terms` and `gradient`, as far as they are among the results; `scale` is the factor of the
// gradient.
template <Results results, Focus focus, typename T>
void fill_chunk(const FocalInputs<T>& in, int64_t begin, int64_t end, T scale,
                T* __restrict__ terms, T* __restrict__ gradient) {
  constexpr bool loss = results != Results::kGradient;
  constexpr bool slope = results != Results::kLoss;
  const int64_t count = end - begin;
  const auto clear = [=](int64_t from, int64_t to) {
    if (loss) std::fill(terms + from, terms + to, T(0));
    if (slope) std::fill(gradient + from, gradient + to, T(0));
  };
  const int64_t first = begin / in.num_classes;
  const int64_t last = (end - 1) / in.num_classes;
  int64_t anchor = first;
  while (anchor <= last && !in.counts(anchor)) ++anchor;
  if (anchor > last) return clear(0, count);
  const T* logits = in.logits + begin;
  const T gamma = in.gamma;
  const T negative = in.negative_weight;
  const T positive = in.positive_weight;
  const T negative_slope = negative * scale;
  const T positive_slope = -positive * scale;
  for_each_logit_block(logits, count, [&](int64_t from, int64_t size, const T* e, auto range) {
    for (int64_t k = 0, j = from; k < size; ++k, ++j) {
      const WrongAnswer<T> wrong = wrong_answer<focus, range()>(logits[j], e[k], gamma);
      if (loss) terms[j] = negative * focal_loss(wrong);
      if (slope) gradient[j] = negative_slope * focal_slope<focus>(wrong, gamma);
    }
  });
  for (anchor = first; anchor <= last; ++anchor) {
    const int64_t row = anchor * in.num_classes - begin;
    if (!in.counts(anchor)) {
      clear(std::max<int64_t>(row, 0), std::min(row + in.num_classes, count));
    } else if (in.labels[anchor] < in.num_classes) {
      const int64_t j = row + in.labels[anchor];
      if (j < 0 || j >= count) continue;
      if (loss) terms[j] = positive * focal_loss<focus>(-logits[j], gamma);
      if (slope) gradient[j] = positive_slope * focal_slope<focus>(-logits[j], gamma);
    }
  }
}

struct Cpu : CpuBackend {
  template <Focus focus, typename T>
  static void forward(const FocalInputs<T>& in, int64_t count, Tensor& loss) {
    const auto fill = [&](int64_t begin, int64_t end, T* terms) {
      fill_chunk<Results::kLoss, focus, T>(in, begin, end, T(1), terms, nullptr);
    };
    sum_terms<T>(count, fill, loss);
  }

  template <Focus focus, typename T>
  static void backward(const FocalInputs<T>& in, int64_t count, const Tensor& grad_loss,
                       Tensor& grad_logits) {
    const T scale = *grad_loss.const_data_ptr<T>();
    T* out = grad_logits.mutable_data_ptr<T>();
    for_each_chunk(count, [&](int64_t begin, int64_t end) {
      fill_chunk<Results::kGradient, focus, T>(in, begin, end, scale, nullptr, out + begin);
    });
  }

  template <Focus focus, typename T>
  static void forward_and_backward(const FocalInputs<T>& in, int64_t count, const Tensor& grad_loss,
                                   Tensor& loss, Tensor& grad_logits) {
    const T scale = *grad_loss.const_data_ptr<T>();
    T* out = grad_logits.mutable_data_ptr<T>();
    const auto fill = [&](int64_t begin, int64_t end, T* terms) {
      fill_chunk<Results::kBoth, focus, T>(in, begin, end, scale, terms, out + begin);
    };
    sum_terms<T>(count, fill, loss);
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  using namespace resobj;
  m.impl("sigmoid_focal_loss", TORCH_BOX(&host::sigmoid_focal_loss<Cpu>));
  m.impl("_sigmoid_focal_loss_backward", TORCH_BOX(&host::sigmoid_focal_loss_backward<Cpu>));
  m.impl("_sigmoid_focal_loss_with_gradient",
         TORCH_BOX(&host::sigmoid_focal_loss_with_gradient<Cpu>));
}
