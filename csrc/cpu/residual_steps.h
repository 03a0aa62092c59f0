// The steps of residual_objectness_bce over one block of anchors, which is so small that all of
// them stay in the first-level cache.
//
// The arithmetic of a logit is one long chain. It is cut into loops, since in a single one there
// would be too few vectors in flight.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "loss_sum.h"
#include "resobj/bce_math.h"
#include "resobj/bits.h"
#include "resobj/residual_objectness_bce_math.h"

namespace resobj {

constexpr int64_t kBlock = 256;
constexpr int64_t kPrefetch = 1024;  // anchors ahead

template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// Whether any of eight labels is positive, i.e. has a low bit set and a clear sign bit.
inline bool any_positive(const int8_t* labels) {
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

// As wide as T, to vectorise loops over both.
template <typename T>
using Label = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

// Whether an anchor is in the loss of a step.
template <typename T>
bool is_in(Label<T> label, T before, T threshold) {
  return (label >= 0) & passes(before, threshold, kInfinity<T>);
}

// `value` where all bits of `mask` are set, 0 where none is. As conditional expressions, several of
// one condition would become a branch.
template <typename T>
T masked(T value, Label<T> mask) {
  return bit_cast<T>(bit_cast<Label<T>>(value) & mask);
}

// The labels of one block, filled up with ignored anchors to whole groups of lanes, so that the
// loops over them have no remainder.
template <typename T>
struct Labels {
  alignas(64) Label<T> of[kBlock];
  int64_t filled;
  int32_t background = 0;
  int32_t num_foreground = 0;
  int32_t foreground[kBlock];  // where they are

  Labels(const int8_t* labels, int64_t size) : filled(ceil_div(size, kLanes) * kLanes) {
    int32_t positive = 0;
    for (int64_t j = 0; j < size; ++j) of[j] = labels[j];
    for (int64_t j = size; j < filled; ++j) of[j] = -1;
    for (int64_t j = 0; j < filled; ++j) {
      positive += of[j] > 0;
      background += of[j] == 0;
    }
    if (positive == 0) return;
    for_each_of_eights_with_positive(labels, 0, size, [&](int64_t j) {
      foreground[num_foreground] = static_cast<int32_t>(j);
      num_foreground += labels[j] > 0;
    });
  }
};

// What is added up of one step over one chunk.
template <typename T>
struct StepTotals {
  alignas(64) T loss[kLanes] = {};
  alignas(64) T background[kLanes] = {};  // scores of these anchors
  double foreground = 0;                  // scores
  int64_t selected = 0;

  void write(double* sums) const {
    double total_loss = 0;
    double total_background = 0;
    for (int k = 0; k < kLanes; ++k) {
      total_loss += loss[k];
      total_background += background[k];
    }
    sums[kLoss] = total_loss;
    sums[kSelected] = static_cast<double>(selected);
    sums[kScores] = total_background;
    sums[kScores + 1] = foreground;
  }
};

// o_t of one block, which is o_{t-1} plus `residuals` unless there are none; with `keep`, residuals
// are only added to what is in the loss. Then exp(-|o_t|).
template <bool keep, typename T>
void update_logits(const T* before, const T* residuals, const Labels<T>& labels, T threshold,
                   int64_t size, T* __restrict__ after, T* __restrict__ exponentials) {
  alignas(64) T rests[kBlock];
  alignas(64) T powers[kBlock];
  const auto split = [&](int64_t j, T logit) {
    after[j] = logit;
    const SplitExponential<T> parts = split_exponential(-std::fabs(logit));
    rests[j] = parts.rest;
    powers[j] = parts.power;
  };
  if (residuals == nullptr) {
    for (int64_t j = 0; j < size; ++j) split(j, before[j]);
  } else {
    for (int64_t j = 0; j < size; ++j) {
      const T updated = before[j] + residuals[j];
      split(j, (!keep || is_in(labels.of[j], before[j], threshold)) ? updated : before[j]);
    }
  }
  for (int64_t j = size; j < labels.filled; ++j) split(j, T(0));
  for (int64_t j = 0; j < labels.filled; ++j) {
    exponentials[j] = join_exponential(SplitExponential<T>{rests[j], powers[j]});
  }
}

// Adds the terms of one step over one block to `totals`, and fills the gradient of its loss with
// respect to o_t, as far as they are among the results. `logits` is o_t, negated for foreground
// anchors, so that background's formulas serve them too but for the sign of the gradient.
//
// Of BCE(o) = max(o, 0) + log(1 + e), e = exp(-|o|), only a sum is needed, so one logarithm serves
// all of a lane: log((1 + e_1) (1 + e_2) ...). The product is at most 2^8, and as its excess over 1
// it keeps the digits of small e.
template <Results results, typename T>
void add_terms(const Labels<T>& labels, T threshold, const T* before, const T* logits,
               const T* exponentials, T scale, StepTotals<T>& totals, T* __restrict__ gradient) {
  Label<T> selected[kLanes] = {};
  static_assert(kBlock / kLanes <= 100, "2^100 is a float");
  alignas(64) T excess[kLanes] = {};
  for (int64_t first = 0; first < labels.filled; first += kLanes) {
    for (int k = 0; k < kLanes; ++k) {
      const int64_t j = first + k;
      const Label<T> in = -Label<T>(is_in(labels.of[j], before[j], threshold));
      const T score = sigmoid_from(logits[j], exponentials[j]);
      if (results != Results::kGradient) {
        totals.background[k] += masked(score, -Label<T>(labels.of[j] == 0));
        totals.loss[k] += masked(logits[j] > T(0) ? logits[j] : T(0), in);
        excess[k] += masked(exponentials[j], in) * (T(1) + excess[k]);
        selected[k] -= in;
      }
      if (results != Results::kLoss) gradient[j] = masked(scale * score, in);
    }
  }
  if (results == Results::kGradient) return;
  for (int k = 0; k < kLanes; ++k) {
    totals.loss[k] += excess[k] != excess[k] ? excess[k] : log1p_positive(excess[k]);
    totals.selected += selected[k];
  }
}

// One step over one block, from o_{t-1} and o_t.
template <Results results, typename T>
void step_block(const Labels<T>& labels, T threshold, const T* before, T* after,
                const T* exponentials, T scale, StepTotals<T>& totals, T* gradient) {
  for (int32_t f = 0; f < labels.num_foreground; ++f) {
    T& logit = after[labels.foreground[f]];
    if (results != Results::kGradient) {
      totals.foreground += sigmoid_from(logit, exponentials[labels.foreground[f]]);
    }
    logit = -logit;
  }
  add_terms<results>(labels, threshold, before, after, exponentials, scale, totals, gradient);
  for (int32_t f = 0; f < labels.num_foreground; ++f) {
    const int32_t j = labels.foreground[f];
    after[j] = -after[j];
    if (results != Results::kLoss) gradient[j] = -gradient[j];
  }
}

// Adds the gradient of later steps' losses to that of one step, and passes their sum on to earlier
// ones. With `keep`, only the residuals of selected anchors are part of o_t.
template <bool keep, typename T>
void add_later(const T* before, const Labels<T>& labels, T threshold, int64_t size,
               T* __restrict__ later, T* __restrict__ gradient) {
  for (int64_t j = 0; j < size; ++j) {
    const bool in = is_in(labels.of[j], before[j], threshold);
    const T total = gradient[j] + later[j];
    later[j] = total;
    gradient[j] = (!keep || in) ? total : T(0);
  }
}

// The gradients: incoming for each step, and where they go.
template <typename T>
struct Gradients {
  const T* losses;  // (T+1)
  T* logits;        // (N, R)
  T* residuals;     // (T, N, R)
};

// Fetches a block into the second-level cache. A step reads and writes little before the next one
// does elsewhere, so the processor does not foresee it.
template <typename T>
void prefetch(const T* from) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t j = 0; j < kBlock; j += kLine) __builtin_prefetch(from + j, 0, 2);
}

// Adds the terms of all steps over `size` anchors from position `begin` on to `totals` (T+1), and
// writes their gradients. `accumulate`: the gradient of a step reaches earlier ones (detach is not
// "all"). `thresholds`: (T+1), -inf for step 0.
template <Results results, bool accumulate, bool keep, typename T>
void compute_block(const ResidualInputs<T>& in, const Labels<T>& labels, const T* thresholds,
                   int64_t begin, int64_t size, StepTotals<T>* totals,
                   const Gradients<T>& gradients) {
  constexpr bool with_gradient = results != Results::kLoss;
  alignas(64) T logits[kMaxSteps + 1][kBlock];
  alignas(64) T exponentials[kBlock];
  alignas(64) T own[kBlock];  // gradients of a block that was filled up
  const auto gradient = [&](int64_t t) {
    if (t == 0) return gradients.logits + begin;
    return gradients.residuals + (t - 1) * in.step_stride() + begin;
  };
  for (int64_t t = 0; t <= in.steps; ++t) {
    const T* residuals = t == 0 ? nullptr : in.residuals + (t - 1) * in.step_stride() + begin;
    const T* before = t == 0 ? in.logits + begin : logits[t - 1];
    prefetch((t == 0 ? before : residuals) + kPrefetch);
    update_logits<keep>(before, residuals, labels, thresholds[t], size, logits[t], exponentials);
    T* target = nullptr;
    if (with_gradient) {
      prefetch(gradient(t) + kPrefetch);
      target = labels.filled == size ? gradient(t) : own;
    }
    step_block<results>(labels, thresholds[t], logits[std::max<int64_t>(t - 1, 0)], logits[t],
                        exponentials, with_gradient ? gradients.losses[t] : T(0), totals[t],
                        target);
    if (with_gradient && labels.filled != size) std::copy(own, own + size, gradient(t));
  }
  if (!with_gradient || !accumulate) return;
  T later[kBlock] = {};
  for (int64_t t = in.steps; t > 0; --t) {
    add_later<keep>(logits[t - 1], labels, thresholds[t], size, later, gradient(t));
  }
  if (in.detach == Detach::kObjectness) return;
  add_later<false>(logits[0], labels, thresholds[0], size, later, gradient(0));
}

}  // namespace resobj
