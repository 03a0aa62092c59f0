// residual_objectness_bce on the CPU: one scan of the labels for the thresholds, then one pass over
// the anchors for all T+1 losses, and with them their gradients if the incoming gradients are
// known. Else these take a pass of their own, to which only the thresholds are passed on:
// recomputing o_t is cheaper than reading it.
//
// The thresholds need no pass per step: a foreground anchor is never below its own minimum, so it
// is selected at every step, and its o_t is a prefix sum of residuals whatever `unselected` is.
// Only a minimum of +inf selects nothing: see next_threshold.

#include <algorithm>
#include <type_traits>
#include <vector>

#include "loss_sum.h"
#include "residual_steps.h"
#include "resobj/residual_objectness_bce_host.h"

namespace resobj {
namespace {

constexpr int64_t kAnchors = 1024;  // per chunk
constexpr int64_t kAnchorChunksPerTask = 8;

// Per step, the smallest sum of a logit and its residuals so far over the foreground anchors of
// one chunk.
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
  for (int64_t i = groups; i < in.steps * groups; ++i) {
    thresholds[i] = next_threshold(thresholds[i - groups], thresholds[i], in.keep, kInfinity<T>);
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

// Fills the sums (T+1, kStepSums) of one chunk and its gradients, as far as they are among the
// results.
template <Results results, bool accumulate, bool keep, typename T>
void compute_chunk(const ResidualInputs<T>& in, const T* minima, const Chunk& chunk, double* sums,
                   const Gradients<T>& gradients) {
  const int64_t groups = in.layout.num_groups();
  T thresholds[kMaxSteps + 1] = {-kInfinity<T>};
  for (int64_t t = 0; t < in.steps; ++t) thresholds[t + 1] = minima[t * groups + chunk.group];
  StepTotals<T> totals[kMaxSteps + 1];
  double background = 0;
  double foreground = 0;
  for (int64_t begin = chunk.begin; begin < chunk.end; begin += kBlock) {
    const int64_t size = std::min(kBlock, chunk.end - begin);
    const Labels<T> labels(in.labels + begin, size);
    background += labels.background;
    foreground += labels.num_foreground;
    compute_block<results, accumulate, keep>(in, labels, thresholds, begin, size, totals,
                                             gradients);
  }
  if (results == Results::kGradient) return;
  for (int64_t t = 0; t <= in.steps; ++t) {
    totals[t].write(sums + t * kStepSums);
    sums[t * kStepSums + kNumbers] = background;
    sums[t * kStepSums + kNumbers + 1] = foreground;
  }
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
