// residual_objectness_bce on the CPU: one scan of the labels for the thresholds, one pass over the
// anchors for all T+1 losses.
//
// The thresholds need no pass per step: a foreground anchor is never below its own minimum, so it
// is selected at every step, and its o_t is a prefix sum of residuals whatever `unselected` says.

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "resobj/bce_math.h"
#include "resobj/residual_checks.h"

namespace resobj {
namespace {

constexpr int64_t kChunk = 1024;
constexpr int64_t kChunksPerTask = 8;
constexpr int kLanes = 8;  // a sum keeps this many partial sums, in a fixed order

template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// Whether any of eight labels is positive: low bits set and sign bit clear.
bool any_positive(const int8_t* labels) {
  uint64_t bytes;
  std::memcpy(&bytes, labels, sizeof(bytes));
  const uint64_t low = 0x7f7f7f7f7f7f7f7fULL;
  return (((bytes & low) + low) & ~bytes & ~low) != 0;
}

// Per step t, the smallest o_t (t = 0..steps-1) of the foreground anchors of one chunk.
template <typename T>
void chunk_minima(const T* logits, const T* residuals, const int8_t* labels, const Chunk& chunk,
                  int64_t step_stride, int64_t steps, T* minima) {
  std::fill(minima, minima + steps, kInfinity<T>);
  for (int64_t i = chunk.begin; i < chunk.end; ++i) {
    if (i + 8 <= chunk.end && !any_positive(labels + i)) {
      i += 7;
      continue;
    }
    if (labels[i] <= 0) continue;
    T logit = logits[i];
    for (int64_t t = 0; t < steps; ++t) {
      minima[t] = nan_min(minima[t], logit);
      logit += residuals[t * step_stride + i];
    }
  }
}

// Fills thresholds (steps, G).
template <typename T>
void find_thresholds(const T* logits, const T* residuals, const int8_t* labels,
                     const ResidualLayout& layout, int64_t steps, T* thresholds) {
  const int64_t groups = layout.num_groups();
  if (layout.scope == Scope::kNone) {
    std::fill(thresholds, thresholds + steps * groups, -kInfinity<T>);
    return;
  }
  std::fill(thresholds, thresholds + steps * groups, kInfinity<T>);
  if (steps == 0) return;
  const int64_t chunks = layout.num_chunks();
  const int64_t step_stride = layout.num_images * layout.num_anchors;
  std::vector<T> minima(chunks * steps);
  const int64_t grain = 8 * kChunksPerTask;  // a label scan is cheap
  torch::stable::parallel_for(0, chunks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      chunk_minima(logits, residuals, labels, layout.chunk(c), step_stride, steps,
                   minima.data() + c * steps);
    }
  });
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t group = layout.chunk(c).group;
    for (int64_t t = 0; t < steps; ++t) {
      T& threshold = thresholds[t * groups + group];
      threshold = nan_min(threshold, minima[c * steps + t]);
    }
  }
}

// Labels of one chunk as the arithmetic wants them, in the width of T so that loops vectorise.
template <typename T>
struct ChunkLabels {
  T sign[kChunk];   // 1 foreground, -1 otherwise
  T valid[kChunk];  // 0 ignored, 1 otherwise

  void load(const int8_t* labels, int64_t count) {
    for (int64_t j = 0; j < count; ++j) {
      sign[j] = labels[j] > 0 ? T(1) : T(-1);
      valid[j] = labels[j] >= 0 ? T(1) : T(0);
    }
  }
};

template <typename T>
double lane_sum(const T* values, int64_t count) {
  T lanes[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (int k = 0; k < kLanes; ++k) lanes[k] += values[j + k];
  }
  for (int k = 0; j < count; ++j, ++k) lanes[k] += values[j];
  double sum = 0;
  for (int k = 0; k < kLanes; ++k) sum += lanes[k];
  return sum;
}

// One step of one chunk: o_t into `refined`, BCE terms of the selected into `terms`, 1 or 0 into
// `selected`.
template <bool keep, typename T>
void step_terms(const T* previous, const T* residuals, const ChunkLabels<T>& labels, T threshold,
                int64_t count, T* __restrict__ refined, T* __restrict__ terms,
                T* __restrict__ selected) {
  for (int64_t j = 0; j < count; ++j) {
    const T logit = previous[j];
    const T updated = logit + residuals[j];
    const bool in = (labels.valid[j] > T(0)) & passes(logit, threshold, kInfinity<T>);
    const T term = bce(labels.sign[j] * updated);
    terms[j] = in ? term : T(0);
    selected[j] = in ? T(1) : T(0);
    refined[j] = (!keep || in) ? updated : logit;
  }
}

template <typename T>
struct Buffers {
  ChunkLabels<T> labels;
  T terms[kChunk];
  T selected[kChunk];
};

template <typename T>
void chunk_losses(const T* logits, const T* residuals, const int8_t* labels, const T* thresholds,
                  const ResidualOptions& options, const Chunk& chunk, int64_t steps, T* refined,
                  double* sums, double* counts, Buffers<T>& buffers) {
  const int64_t count = chunk.end - chunk.begin;
  const int64_t groups = options.layout.num_groups();
  const int64_t step_stride = options.layout.num_images * options.layout.num_anchors;
  buffers.labels.load(labels + chunk.begin, count);
  const T* previous = logits + chunk.begin;
  for (int64_t j = 0; j < count; ++j) {
    const T term = bce(buffers.labels.sign[j] * previous[j]);
    buffers.terms[j] = buffers.labels.valid[j] > T(0) ? term : T(0);
  }
  sums[0] = lane_sum(buffers.terms, count);
  counts[0] = lane_sum(buffers.labels.valid, count);
  for (int64_t t = 0; t < steps; ++t) {
    const int64_t offset = t * step_stride + chunk.begin;
    const T threshold = thresholds[t * groups + chunk.group];
    const auto run = options.keep ? step_terms<true, T> : step_terms<false, T>;
    run(previous, residuals + offset, buffers.labels, threshold, count, refined + offset,
        buffers.terms, buffers.selected);
    sums[t + 1] = lane_sum(buffers.terms, count);
    counts[t + 1] = lane_sum(buffers.selected, count);
    previous = refined + offset;
  }
}

template <typename T>
void forward(const Tensor& logits, const Tensor& residuals, const Tensor& labels,
             const ResidualOptions& options, Tensor& losses, Tensor& counts, Tensor& thresholds,
             Tensor& refined) {
  const int64_t steps = residuals.size(0);
  const int64_t terms = steps + 1;
  const int64_t chunks = options.layout.num_chunks();
  const T* logits_data = logits.const_data_ptr<T>();
  const T* residuals_data = residuals.const_data_ptr<T>();
  const int8_t* labels_data = labels.const_data_ptr<int8_t>();
  T* thresholds_data = thresholds.mutable_data_ptr<T>();
  T* refined_data = refined.mutable_data_ptr<T>();
  find_thresholds(logits_data, residuals_data, labels_data, options.layout, steps, thresholds_data);

  std::vector<double> partial_sums(chunks * terms);
  std::vector<double> partial_counts(chunks * terms);
  torch::stable::parallel_for(0, chunks, kChunksPerTask, [&](int64_t begin, int64_t end) {
    Buffers<T> buffers;
    for (int64_t c = begin; c < end; ++c) {
      chunk_losses(logits_data, residuals_data, labels_data, thresholds_data, options,
                   options.layout.chunk(c), steps, refined_data, partial_sums.data() + c * terms,
                   partial_counts.data() + c * terms, buffers);
    }
  });
  for (int64_t s = 0; s < terms; ++s) {
    double sum = 0;
    double count = 0;
    for (int64_t c = 0; c < chunks; ++c) {
      sum += partial_sums[c * terms + s];
      count += partial_counts[c * terms + s];
    }
    losses.mutable_data_ptr<T>()[s] = static_cast<T>(sum);
    counts.mutable_data_ptr<int64_t>()[s] = static_cast<int64_t>(count);
  }
}

// Gradient of one step of one chunk. `later` carries the gradient of the losses of later steps
// where those reach this one (`accumulate`: detach is not "all"). With `keep`, only the residuals
// of selected anchors entered o_t.
template <bool accumulate, bool keep, typename T>
void step_gradient(const T* previous, const T* refined, const ChunkLabels<T>& labels, T threshold,
                   T scale, int64_t count, T* __restrict__ later, T* __restrict__ grad_residuals) {
  for (int64_t j = 0; j < count; ++j) {
    const bool in = (labels.valid[j] > T(0)) & passes(previous[j], threshold, kInfinity<T>);
    const T sign = labels.sign[j];
    const T own = -scale * sign * sigmoid_of_negative(sign * refined[j]);
    const T masked = in ? own : T(0);
    const T total = accumulate ? masked + later[j] : masked;
    if (accumulate) later[j] = total;
    grad_residuals[j] = (!keep || in) ? total : T(0);
  }
}

template <bool from_steps, typename T>
void objectness_gradient(const T* logits, const ChunkLabels<T>& labels, T scale, int64_t count,
                         const T* later, T* __restrict__ grad_logits) {
  for (int64_t j = 0; j < count; ++j) {
    const T sign = labels.sign[j];
    const T own = -scale * sign * sigmoid_of_negative(sign * logits[j]);
    const T masked = labels.valid[j] > T(0) ? own : T(0);
    grad_logits[j] = from_steps ? masked + later[j] : masked;
  }
}

template <typename T>
void chunk_gradients(const T* grad_losses, const T* logits, const T* refined, const int8_t* labels,
                     const T* thresholds, const ResidualOptions& options, const Chunk& chunk,
                     int64_t steps, T* grad_logits, T* grad_residuals, ChunkLabels<T>& chunk_labels,
                     T* later) {
  const int64_t count = chunk.end - chunk.begin;
  const int64_t groups = options.layout.num_groups();
  const int64_t step_stride = options.layout.num_images * options.layout.num_anchors;
  auto step = options.keep ? step_gradient<true, true, T> : step_gradient<true, false, T>;
  // A step that only its own loss reaches has no gradient outside the selected anchors anyway.
  if (options.detach == Detach::kAll) step = step_gradient<false, false, T>;
  chunk_labels.load(labels + chunk.begin, count);
  std::fill(later, later + count, T(0));
  for (int64_t t = steps - 1; t >= 0; --t) {
    const int64_t offset = t * step_stride + chunk.begin;
    const T* previous = t == 0 ? logits + chunk.begin : refined + offset - step_stride;
    step(previous, refined + offset, chunk_labels, thresholds[t * groups + chunk.group],
         grad_losses[t + 1], count, later, grad_residuals + offset);
  }
  const auto objectness = options.detach == Detach::kNone ? objectness_gradient<true, T>
                                                          : objectness_gradient<false, T>;
  objectness(logits + chunk.begin, chunk_labels, grad_losses[0], count, later,
             grad_logits + chunk.begin);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> residual_objectness_bce(
    const Tensor& logits, const Tensor& residuals, const Tensor& labels, std::string detach,
    std::string min_scope, std::string unselected, std::vector<int64_t> level_sizes) {
  check_forward(logits, residuals, labels);
  const ResidualOptions options =
      parse_options(logits, detach, min_scope, unselected, level_sizes, kChunk);
  const Tensor o = torch::stable::contiguous(logits);
  const Tensor r = torch::stable::contiguous(residuals);
  const Tensor y = torch::stable::contiguous(labels);
  const int64_t steps = r.size(0);
  Tensor losses = torch::stable::new_empty(o, {steps + 1});
  Tensor counts = torch::stable::new_empty(o, {steps + 1}, ScalarType::Long);
  Tensor thresholds = torch::stable::new_empty(o, {steps, options.layout.num_groups()});
  Tensor refined = torch::stable::new_empty(o, r.sizes());
  dispatch_float(o, [&](auto scalar) {
    forward<decltype(scalar)>(o, r, y, options, losses, counts, thresholds, refined);
  });
  return {losses, counts, thresholds, refined};
}

std::tuple<Tensor, Tensor> residual_objectness_bce_backward(
    const Tensor& grad_losses, const Tensor& logits, const Tensor& refined, const Tensor& labels,
    const Tensor& thresholds, std::string detach, std::string min_scope, std::string unselected,
    std::vector<int64_t> level_sizes) {
  check_forward(logits, refined, labels);
  const ResidualOptions options =
      parse_options(logits, detach, min_scope, unselected, level_sizes, kChunk);
  check_backward(grad_losses, logits, refined, thresholds, options.layout.num_groups());
  const Tensor g = torch::stable::contiguous(grad_losses);
  const Tensor o = torch::stable::contiguous(logits);
  const Tensor refined_c = torch::stable::contiguous(refined);
  const Tensor y = torch::stable::contiguous(labels);
  const Tensor thr = torch::stable::contiguous(thresholds);
  Tensor grad_logits = torch::stable::new_empty(o, o.sizes());
  Tensor grad_residuals = torch::stable::new_empty(o, refined_c.sizes());
  dispatch_float(o, [&](auto scalar) {
    using T = decltype(scalar);
    torch::stable::parallel_for(
        0, options.layout.num_chunks(), kChunksPerTask, [&](int64_t begin, int64_t end) {
          ChunkLabels<T> chunk_labels;
          T later[kChunk];
          for (int64_t c = begin; c < end; ++c) {
            chunk_gradients(g.const_data_ptr<T>(), o.const_data_ptr<T>(),
                            refined_c.const_data_ptr<T>(), y.const_data_ptr<int8_t>(),
                            thr.const_data_ptr<T>(), options, options.layout.chunk(c),
                            refined_c.size(0), grad_logits.mutable_data_ptr<T>(),
                            grad_residuals.mutable_data_ptr<T>(), chunk_labels, later);
          }
        });
  });
  return {grad_logits, grad_residuals};
}

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  m.impl("residual_objectness_bce", TORCH_BOX(&resobj::residual_objectness_bce));
  m.impl("_residual_objectness_bce_backward", TORCH_BOX(&resobj::residual_objectness_bce_backward));
}
