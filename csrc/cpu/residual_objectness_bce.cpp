// residual_objectness_bce on the CPU: one scan of the labels for the thresholds, then one pass over
// the anchors for all T+1 losses, and with them their gradients if the incoming gradients are
// known. Else these take a pass of their own, to which only the thresholds are passed on:
// recomputing o_t is cheaper than reading it.
//
// The thresholds need no pass per step: a foreground anchor is never below its own minimum, so it
// is selected at every step, and its o_t is a prefix sum of residuals whatever `unselected` is.

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "logit_blocks.h"
#include "loss_sum.h"
#include "resobj/bce_math.h"
#include "resobj/residual_objectness_bce_host.h"

namespace resobj {
namespace {

constexpr int64_t kAnchors = 1024;  // per chunk
constexpr int64_t kAnchorChunksPerTask = 8;

template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// Whether any of eight labels is positive, i.e. has a low bit set and a clear sign bit.
bool any_positive(const int8_t* labels) {
  uint64_t bytes;
  std::memcpy(&bytes, labels, sizeof(bytes));
  const uint64_t low = 0x7f7f7f7f7f7f7f7fULL;
  return (((bytes & low) + low) & ~bytes & ~low) != 0;
}

// Calls f(i) for i in [begin, end), without most eights of labels of which none is positive.
// Whether one is, f finds out best without a branch, which could not be predicted.
template <typename F>
void for_each_of_eights_with_positive(const int8_t* labels, int64_t begin, int64_t end,
                                      const F& f) {
  for (int64_t i = begin; i < end;) {
    const int64_t next = std::min<int64_t>(i + 8, end);
    const bool skip = next == i + 8 && !any_positive(labels + i);
    for (; !skip && i < next; ++i) f(i);
    i = next;
  }
}

// Per step t, the smallest o_t (t = 0..T-1) of the foreground anchors of one chunk.
template <typename T>
void chunk_minima(const ResidualInputs<T>& in, const Chunk& chunk, T* minima) {
  std::fill(minima, minima + in.steps, kInfinity<T>);
  for_each_of_eights_with_positive(in.labels, chunk.begin, chunk.end, [&](int64_t i) {
    const bool positive = in.labels[i] > 0;
    T logit = in.logits[i];
    for (int64_t t = 0; t < in.steps; ++t) {
      minima[t] = nan_min(minima[t], positive ? logit : kInfinity<T>);
      logit += in.residuals[t * in.step_stride() + i];
    }
  });
}

// Fills thresholds (T, G).
template <typename T>
void find_thresholds(const ResidualInputs<T>& in, T* thresholds) {
  const int64_t groups = in.layout.num_groups();
  if (in.layout.scope == Scope::kNone) {
    std::fill(thresholds, thresholds + in.steps * groups, -kInfinity<T>);
    return;
  }
  std::fill(thresholds, thresholds + in.steps * groups, kInfinity<T>);
  if (in.steps == 0) return;
  const int64_t chunks = in.layout.num_chunks();
  std::vector<T> minima(chunks * in.steps);
  const int64_t grain = 8 * kAnchorChunksPerTask;  // a label scan is cheap
  torch::stable::parallel_for(0, chunks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      chunk_minima(in, in.layout.chunk(c), minima.data() + c * in.steps);
    }
  });
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t group = in.layout.chunk(c).group;
    for (int64_t t = 0; t < in.steps; ++t) {
      T& threshold = thresholds[t * groups + group];
      threshold = nan_min(threshold, minima[c * in.steps + t]);
    }
  }
}

// Calls f(chunk) for each chunk, with the best available instructions.
template <typename F>
void for_each_anchor_chunk(int64_t chunks, const F& f) {
  torch::stable::parallel_for(0, chunks, kAnchorChunksPerTask, [&](int64_t begin, int64_t end) {
    run_vectorized([&] {
      for (int64_t c = begin; c < end; ++c) f(c);
    });
  });
}

// Calls f(constant), where constant() is `value` and can be a template argument.
template <typename F>
void dispatch_bool(bool value, const F& f) {
  if (value) {
    f(std::true_type());
  } else {
    f(std::false_type());
  }
}

// The labels of one chunk in the form that the arithmetic needs, as wide as T to vectorise loops.
template <typename T>
struct Signs {
  alignas(64) T sign[kAnchors];  // 1 foreground, -1 background, 0 ignored
  int64_t count;
  int32_t background = 0;
  // Where the foreground anchors are: few, so all are computed as background and these again.
  int32_t foreground[kAnchors + 1];  // one more is written, not counted
  int32_t num_foreground = 0;

  Signs(const int8_t* labels, const Chunk& chunk) : count(chunk.end - chunk.begin) {
    const int8_t* own = labels + chunk.begin;
    int32_t positive = 0;
    for (int64_t j = 0; j < count; ++j) {
      sign[j] = own[j] > 0 ? T(1) : (own[j] < 0 ? T(0) : T(-1));
      positive += own[j] > 0;
      background += own[j] == 0;
    }
    if (positive == 0) return;
    for_each_of_eights_with_positive(own, 0, count, [&](int64_t j) {
      foreground[num_foreground] = static_cast<int32_t>(j);
      num_foreground += own[j] > 0;
    });
  }
};

template <typename T>
struct Terms {
  alignas(64) T loss[kAnchors];
  alignas(64) T background[kAnchors];  // scores of these anchors, 0 for the others
};

// What foreground anchors have at one step. It is computed side by side, in vectors, since there
// may be many of them.
template <typename T>
struct Foreground {
  alignas(64) T logit[kAnchors];
  alignas(64) T loss[kAnchors];
  alignas(64) T score[kAnchors];
  alignas(64) T slope[kAnchors];  // of the loss, without its sign

  template <bool with_loss, bool with_slope>
  void compute(const Signs<T>& signs, const T* logits) {
    const int32_t count = signs.num_foreground;
    for (int32_t f = 0; f < count; ++f) logit[f] = logits[signs.foreground[f]];
    for (int32_t f = 0; f < count && with_loss; ++f) {
      const BceAndScore<T> value = bce_and_score(logit[f], T(1));
      loss[f] = value.bce;
      score[f] = value.score;
    }
    for (int32_t f = 0; f < count && with_slope; ++f) slope[f] = sigmoid_of_negative(logit[f]);
  }
};

// Whether an anchor is in the loss of a step.
template <typename T>
bool is_in(T sign, T before, T threshold) {
  return (sign != T(0)) & passes(before, threshold, kInfinity<T>);
}

// o_t from o_{t-1}; with `keep`, residuals are only added to what is in the loss.
template <bool keep, typename T>
void add_residuals(const T* residuals, const Signs<T>& signs, T threshold, const T* before,
                   T* __restrict__ after) {
  for (int64_t j = 0; j < signs.count; ++j) {
    const T updated = before[j] + residuals[j];
    after[j] = (!keep || is_in(signs.sign[j], before[j], threshold)) ? updated : before[j];
  }
}

// Sums of one step over one chunk, from o_{t-1} and o_t; `with_gradient`: also the gradient of its
// loss with respect to o_t.
template <bool with_gradient, typename T>
void step_sums(const Signs<T>& signs, T threshold, const T* before, const T* after, Terms<T>& terms,
               T scale, T* __restrict__ gradient, double* sums) {
  int32_t selected = 0;
  for_each_logit_block(
      after, signs.count, [&](int64_t first, int64_t size, const T* e, auto range) {
        for (int64_t k = 0, j = first; k < size; ++k, ++j) {
          const T sign = signs.sign[j];
          const bool in = is_in(sign, before[j], threshold);
          const BceAndScore<T> value = background_bce_and_score<range()>(after[j], e[k]);
          terms.loss[j] = in ? value.bce : T(0);
          terms.background[j] = sign < T(0) ? value.score : T(0);
          selected += in;
          if (with_gradient) {
            const T own = scale * value.score;
            gradient[j] = in ? own : T(0);
          }
        }
      });
  Foreground<T> own;
  own.template compute<true, with_gradient>(signs, after);
  double foreground = 0;
  for (int32_t f = 0; f < signs.num_foreground; ++f) {
    const int32_t j = signs.foreground[f];
    const bool in = is_in(T(1), before[j], threshold);
    terms.loss[j] = in ? own.loss[f] : T(0);
    foreground += own.score[f];
    if (with_gradient) gradient[j] = in ? -scale * own.slope[f] : T(0);
  }
  sums[kLoss] = chunk_sum(terms.loss, signs.count);
  sums[kSelected] = selected;
  sums[kScores] = chunk_sum(terms.background, signs.count);
  sums[kScores + 1] = foreground;
  sums[kNumbers] = signs.background;
  sums[kNumbers + 1] = signs.num_foreground;
}

// o_0..o_T of one chunk.
template <bool keep, typename T>
void form_logits(const ResidualInputs<T>& in, const T* thresholds, const Chunk& chunk,
                 const Signs<T>& signs, T (*logits)[kAnchors]) {
  std::copy(in.logits + chunk.begin, in.logits + chunk.end, logits[0]);
  const int64_t groups = in.layout.num_groups();
  for (int64_t t = 0; t < in.steps; ++t) {
    add_residuals<keep>(in.residuals + t * in.step_stride() + chunk.begin, signs,
                        thresholds[t * groups + chunk.group], logits[t], logits[t + 1]);
  }
}

// Gradient of one step's loss with respect to o_t for one chunk.
template <typename T>
void step_gradient(const T* before, const T* after, const Signs<T>& signs, T threshold, T scale,
                   T* __restrict__ gradient) {
  for_each_logit_block(
      after, signs.count, [&](int64_t first, int64_t size, const T* e, auto range) {
        for (int64_t k = 0, j = first; k < size; ++k, ++j) {
          const T own = scale * background_bce_and_score<range()>(after[j], e[k]).score;
          gradient[j] = is_in(signs.sign[j], before[j], threshold) ? own : T(0);
        }
      });
  Foreground<T> own;
  own.template compute<false, true>(signs, after);
  for (int32_t f = 0; f < signs.num_foreground; ++f) {
    const int32_t j = signs.foreground[f];
    gradient[j] = is_in(T(1), before[j], threshold) ? -scale * own.slope[f] : T(0);
  }
}

// Adds the gradient of later steps' losses to that of one step, and passes their sum on to earlier
// ones. With `keep`, only the residuals of selected anchors are part of o_t.
template <bool keep, typename T>
void add_later(const T* before, const Signs<T>& signs, T threshold, T* __restrict__ later,
               T* __restrict__ gradient) {
  for (int64_t j = 0; j < signs.count; ++j) {
    const bool in = is_in(signs.sign[j], before[j], threshold);
    const T total = gradient[j] + later[j];
    later[j] = total;
    gradient[j] = (!keep || in) ? total : T(0);
  }
}

// The gradients of one chunk: incoming for each step, and where they go.
template <typename T>
struct Gradients {
  const T* losses;  // (T+1)
  T* logits;        // (N, R)
  T* residuals;     // (T, N, R)
};

// Fills the sums (T+1, kStepSums) of one chunk and its gradients, as far as they are among the
// results. `accumulate`: the gradient of a step reaches earlier ones (detach is not "all").
template <Results results, bool accumulate, bool keep, typename T>
void compute_chunk(const ResidualInputs<T>& in, const T* thresholds, const Chunk& chunk,
                   double* sums, const Gradients<T>& gradients) {
  constexpr bool with_gradient = results != Results::kLoss;
  const Signs<T> signs(in.labels, chunk);
  alignas(64) T logits[kMaxSteps + 1][kAnchors];
  form_logits<keep>(in, thresholds, chunk, signs, logits);
  const int64_t groups = in.layout.num_groups();
  const auto threshold = [&](int64_t t) {
    return t == 0 ? -kInfinity<T> : thresholds[(t - 1) * groups + chunk.group];
  };
  const auto gradient = [&](int64_t t) {
    if (t == 0) return gradients.logits + chunk.begin;
    return gradients.residuals + (t - 1) * in.step_stride() + chunk.begin;
  };
  Terms<T> terms;
  for (int64_t t = 0; t <= in.steps; ++t) {
    const T* before = logits[std::max<int64_t>(t - 1, 0)];
    if (results == Results::kLoss) {
      step_sums<false, T>(signs, threshold(t), before, logits[t], terms, T(0), nullptr,
                          sums + t * kStepSums);
    } else if (results == Results::kGradient) {
      step_gradient(before, logits[t], signs, threshold(t), gradients.losses[t], gradient(t));
    } else {
      step_sums<true>(signs, threshold(t), before, logits[t], terms, gradients.losses[t],
                      gradient(t), sums + t * kStepSums);
    }
  }
  if (!with_gradient || !accumulate) return;
  T later[kAnchors];
  std::fill(later, later + signs.count, T(0));
  for (int64_t t = in.steps; t > 0; --t) {
    add_later<keep>(logits[t - 1], signs, threshold(t), later, gradient(t));
  }
  if (in.detach == Detach::kObjectness) return;
  add_later<false>(logits[0], signs, threshold(0), later, gradient(0));
}

template <Results results, typename T>
void compute(const ResidualInputs<T>& in, const T* thresholds, double* sums,
             const Gradients<T>& gradients) {
  const int64_t values = (in.steps + 1) * kStepSums;
  dispatch_bool(in.keep, [&](auto keep) {
    dispatch_bool(in.detach != Detach::kAll, [&](auto accumulate) {
      for_each_anchor_chunk(in.layout.num_chunks(), [&](int64_t c) {
        compute_chunk<results, accumulate(), keep()>(in, thresholds, in.layout.chunk(c),
                                                     sums + c * values, gradients);
      });
    });
  });
}

// Adds up the sums of all chunks.
template <typename T>
void write_sums(const ResidualInputs<T>& in, const std::vector<double>& partial,
                ResidualOutputs& out) {
  const int64_t values = (in.steps + 1) * kStepSums;
  for (int64_t s = 0; s <= in.steps; ++s) {
    double total[kStepSums] = {};
    for (int64_t c = 0; c < in.layout.num_chunks(); ++c) {
      for (int k = 0; k < kStepSums; ++k) total[k] += partial[c * values + s * kStepSums + k];
    }
    out.losses.mutable_data_ptr<T>()[s] = static_cast<T>(total[kLoss]);
    out.counts.mutable_data_ptr<int64_t>()[s] = static_cast<int64_t>(total[kSelected]);
    for (int k = 0; k < 2; ++k) {
      out.score_sums.mutable_data_ptr<T>()[2 * s + k] = static_cast<T>(total[kScores + k]);
      out.num_background_foreground.mutable_data_ptr<int64_t>()[k] =
          static_cast<int64_t>(total[kNumbers + k]);
    }
  }
}

struct Cpu : CpuBackend {
  static constexpr int64_t kAnchors = resobj::kAnchors;

  template <typename T>
  static void forward(const ResidualInputs<T>& in, ResidualOutputs& out) {
    losses<Results::kLoss>(in, Gradients<T>{}, out);
  }

  template <typename T>
  static void backward(const ResidualInputs<T>& in, const T* grad_losses, const T* thresholds,
                       Tensor& grad_logits, Tensor& grad_residuals) {
    const Gradients<T> gradients{grad_losses, grad_logits.mutable_data_ptr<T>(),
                                 grad_residuals.mutable_data_ptr<T>()};
    compute<Results::kGradient>(in, thresholds, nullptr, gradients);
  }

  template <typename T>
  static void forward_and_backward(const ResidualInputs<T>& in, const T* grad_losses,
                                   ResidualOutputs& out, Tensor& grad_logits,
                                   Tensor& grad_residuals) {
    const Gradients<T> gradients{grad_losses, grad_logits.mutable_data_ptr<T>(),
                                 grad_residuals.mutable_data_ptr<T>()};
    losses<Results::kBoth>(in, gradients, out);
  }

 private:
  template <Results results, typename T>
  static void losses(const ResidualInputs<T>& in, const Gradients<T>& gradients,
                     ResidualOutputs& out) {
    T* thresholds = out.thresholds.mutable_data_ptr<T>();
    find_thresholds(in, thresholds);
    std::vector<double> partial(in.layout.num_chunks() * (in.steps + 1) * kStepSums);
    compute<results>(in, thresholds, partial.data(), gradients);
    write_sums(in, partial, out);
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  using namespace resobj;
  m.impl("residual_objectness_bce", TORCH_BOX(&host::residual_objectness_bce<Cpu>));
  m.impl("_residual_objectness_bce_backward",
         TORCH_BOX(&host::residual_objectness_bce_backward<Cpu>));
  m.impl("_residual_objectness_bce_with_gradient",
         TORCH_BOX(&host::residual_objectness_bce_with_gradient<Cpu>));
}
