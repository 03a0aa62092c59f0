// residual_objectness_bce on the CPU: one scan of the labels for the thresholds, one pass over the
// anchors for all T+1 losses, one for the gradients. Only the thresholds are passed on to the
// backward: recomputing o_t is cheaper than reading it.
//
// The thresholds need no pass per step: a foreground anchor is never below its own minimum, so it
// is selected at every step, and its o_t is a prefix sum of residuals whatever `unselected` is.

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

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

// Per step t, the smallest o_t (t = 0..T-1) of the foreground anchors of one chunk.
template <typename T>
void chunk_minima(const ResidualInputs<T>& in, const Chunk& chunk, T* minima) {
  std::fill(minima, minima + in.steps, kInfinity<T>);
  for (int64_t i = chunk.begin; i < chunk.end; ++i) {
    if (i + 8 <= chunk.end && !any_positive(in.labels + i)) {
      i += 7;
      continue;
    }
    if (in.labels[i] <= 0) continue;
    T logit = in.logits[i];
    for (int64_t t = 0; t < in.steps; ++t) {
      minima[t] = nan_min(minima[t], logit);
      logit += in.residuals[t * in.step_stride() + i];
    }
  }
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
  T sign[kAnchors];  // 1 foreground, -1 background, 0 ignored
  int64_t count;
  int32_t foreground = 0;
  int32_t background = 0;

  Signs(const int8_t* labels, const Chunk& chunk) : count(chunk.end - chunk.begin) {
    for (int64_t j = 0; j < count; ++j) {
      const int8_t label = labels[chunk.begin + j];
      sign[j] = label > 0 ? T(1) : (label < 0 ? T(0) : T(-1));
      foreground += label > 0;
      background += label == 0;
    }
  }
};

template <typename T>
struct Terms {
  T loss[kAnchors];
  T background[kAnchors];  // scores of these anchors, 0 for the others
  T foreground[kAnchors];
};

// Sums of one step over one chunk. `logits` are updated from o_{t-1} to o_t; step 0 has no
// residuals.
template <bool first, bool keep, typename T>
void step_sums(const T* residuals, const Signs<T>& signs, T threshold, T* __restrict__ logits,
               Terms<T>& terms, double* sums) {
  int32_t selected = 0;
  for (int64_t j = 0; j < signs.count; ++j) {
    const T before = logits[j];
    const T sign = signs.sign[j];
    const bool in = (sign != T(0)) & passes(before, threshold, kInfinity<T>);
    const T updated = first ? before : before + residuals[j];
    const T after = (!keep || in) ? updated : before;
    const BceAndScore<T> value = bce_and_score(after, sign);
    logits[j] = after;
    terms.loss[j] = in ? value.bce : T(0);
    terms.background[j] = sign < T(0) ? value.score : T(0);
    terms.foreground[j] = sign > T(0) ? value.score : T(0);
    selected += in;
  }
  sums[kLoss] = chunk_sum(terms.loss, signs.count);
  sums[kSelected] = selected;
  sums[kScores] = chunk_sum(terms.background, signs.count);
  sums[kScores + 1] = signs.foreground > 0 ? chunk_sum(terms.foreground, signs.count) : 0;
  sums[kNumbers] = signs.background;
  sums[kNumbers + 1] = signs.foreground;
}

// Fills the sums (T+1, kStepSums) of one chunk.
template <bool keep, typename T>
void chunk_losses(const ResidualInputs<T>& in, const T* thresholds, const Chunk& chunk,
                  double* sums) {
  const Signs<T> signs(in.labels, chunk);
  Terms<T> terms;
  T logits[kAnchors];
  std::copy(in.logits + chunk.begin, in.logits + chunk.end, logits);
  step_sums<true, keep, T>(nullptr, signs, -kInfinity<T>, logits, terms, sums);
  const int64_t groups = in.layout.num_groups();
  for (int64_t t = 0; t < in.steps; ++t) {
    step_sums<false, keep>(in.residuals + t * in.step_stride() + chunk.begin, signs,
                           thresholds[t * groups + chunk.group], logits, terms,
                           sums + (t + 1) * kStepSums);
  }
}

// o_0..o_T of one chunk.
template <bool keep, typename T>
void form_logits(const ResidualInputs<T>& in, const T* thresholds, const Chunk& chunk,
                 const Signs<T>& signs, T (*logits)[kAnchors]) {
  std::copy(in.logits + chunk.begin, in.logits + chunk.end, logits[0]);
  const int64_t groups = in.layout.num_groups();
  for (int64_t t = 0; t < in.steps; ++t) {
    const T* residuals = in.residuals + t * in.step_stride() + chunk.begin;
    const T threshold = thresholds[t * groups + chunk.group];
    for (int64_t j = 0; j < signs.count; ++j) {
      const T before = logits[t][j];
      const bool in_step = (signs.sign[j] != T(0)) & passes(before, threshold, kInfinity<T>);
      const T updated = before + residuals[j];
      logits[t + 1][j] = (!keep || in_step) ? updated : before;
    }
  }
}

// Gradient of one step for one chunk. `later` carries the gradient of later steps' losses if it
// reaches this one (`accumulate`: detach is not "all"). With `keep`, only the residuals of selected
// anchors are part of o_t.
template <bool accumulate, bool keep, typename T>
void step_gradient(const T* before, const T* after, const Signs<T>& signs, T threshold, T scale,
                   T* __restrict__ later, T* __restrict__ gradient) {
  for (int64_t j = 0; j < signs.count; ++j) {
    const T sign = signs.sign[j];
    const bool in = (sign != T(0)) & passes(before[j], threshold, kInfinity<T>);
    const T own = -scale * sign * sigmoid_of_negative(sign * after[j]);
    const T masked = in ? own : T(0);
    const T total = accumulate ? masked + later[j] : masked;
    if (accumulate) later[j] = total;
    gradient[j] = (!keep || in) ? total : T(0);
  }
}

template <bool accumulate, bool keep, typename T>
void chunk_gradients(const ResidualInputs<T>& in, const T* grad_losses, const T* thresholds,
                     const Chunk& chunk, T* grad_logits, T* grad_residuals) {
  const Signs<T> signs(in.labels, chunk);
  T logits[kMaxSteps + 1][kAnchors];
  T later[kAnchors];
  form_logits<keep>(in, thresholds, chunk, signs, logits);
  std::fill(later, later + signs.count, T(0));
  const int64_t groups = in.layout.num_groups();
  for (int64_t t = in.steps - 1; t >= 0; --t) {
    step_gradient<accumulate, keep>(logits[t], logits[t + 1], signs,
                                    thresholds[t * groups + chunk.group], grad_losses[t + 1], later,
                                    grad_residuals + t * in.step_stride() + chunk.begin);
  }
  if (in.detach == Detach::kObjectness) std::fill(later, later + signs.count, T(0));
  step_gradient<accumulate, false>(logits[0], logits[0], signs, -kInfinity<T>, grad_losses[0],
                                   later, grad_logits + chunk.begin);
}

struct Cpu : CpuBackend {
  static constexpr int64_t kAnchors = resobj::kAnchors;

  template <typename T>
  static void forward(const ResidualInputs<T>& in, ResidualOutputs& out) {
    T* thresholds = out.thresholds.mutable_data_ptr<T>();
    find_thresholds(in, thresholds);
    const int64_t chunks = in.layout.num_chunks();
    const int64_t values = (in.steps + 1) * kStepSums;
    std::vector<double> partial(chunks * values);
    dispatch_bool(in.keep, [&](auto keep) {
      for_each_anchor_chunk(chunks, [&](int64_t c) {
        chunk_losses<keep()>(in, thresholds, in.layout.chunk(c), partial.data() + c * values);
      });
    });
    for (int64_t s = 0; s <= in.steps; ++s) {
      double total[kStepSums] = {};
      for (int64_t c = 0; c < chunks; ++c) {
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

  template <typename T>
  static void backward(const ResidualInputs<T>& in, const T* grad_losses, const T* thresholds,
                       Tensor& grad_logits, Tensor& grad_residuals) {
    T* logits_out = grad_logits.mutable_data_ptr<T>();
    T* residuals_out = grad_residuals.mutable_data_ptr<T>();
    dispatch_bool(in.keep, [&](auto keep) {
      dispatch_bool(in.detach != Detach::kAll, [&](auto accumulate) {
        for_each_anchor_chunk(in.layout.num_chunks(), [&](int64_t c) {
          chunk_gradients<accumulate(), keep()>(in, grad_losses, thresholds, in.layout.chunk(c),
                                                logits_out, residuals_out);
        });
      });
    });
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  using namespace resobj;
  m.impl("residual_objectness_bce", TORCH_BOX(&host::residual_objectness_bce<Cpu>));
  m.impl("_residual_objectness_bce_backward",
         TORCH_BOX(&host::residual_objectness_bce_backward<Cpu>));
}
