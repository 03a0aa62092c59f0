// residual_objectness_bce on CUDA: minima per chunk, thresholds, losses per chunk, final sums (four
// launches), and one launch for the gradients. One block per chunk; every reduction has a fixed
// order, nothing waits for the device.

#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "cuda_utils.h"
#include "resobj/bce_math.h"
#include "resobj/residual_checks.h"

namespace resobj {
namespace {

constexpr int64_t kChunk = 1024;

template <typename T>
__device__ T infinity() {
  return static_cast<T>(INFINITY);
}

template <typename T>
struct Minimum {
  __device__ T operator()(T a, T b) const { return nan_min(a, b); }
};

template <typename T>
struct Sum {
  __device__ T operator()(T a, T b) const { return a + b; }
};

// What the kernels read, all contiguous. In the backward, `refined` takes the place of `residuals`.
template <typename T>
struct Inputs {
  const T* logits;
  const T* residuals;
  const int8_t* labels;
  int steps;
  ResidualLayout layout;

  __device__ int64_t step_stride() const { return layout.num_images * layout.num_anchors; }
};

// minima (steps, chunks): see chunk_minima in cpu/residual_objectness.cpp.
template <typename T>
__global__ void minima_kernel(Inputs<T> in, T* __restrict__ minima) {
  __shared__ T scratch[kBlock / kWarp];
  const Chunk chunk = in.layout.chunk(blockIdx.x);
  T smallest[kMaxSteps];
#pragma unroll
  for (int t = 0; t < kMaxSteps; ++t) smallest[t] = infinity<T>();
  for (int64_t i = chunk.begin + threadIdx.x; i < chunk.end; i += kBlock) {
    if (in.labels[i] <= 0) continue;
    T logit = in.logits[i];
#pragma unroll
    for (int t = 0; t < kMaxSteps; ++t) {
      if (t >= in.steps) break;
      smallest[t] = nan_min(smallest[t], logit);
      logit += in.residuals[t * in.step_stride() + i];
    }
  }
#pragma unroll
  for (int t = 0; t < kMaxSteps; ++t) {
    if (t >= in.steps) break;
    const T minimum = block_reduce(smallest[t], scratch, infinity<T>(), Minimum<T>());
    if (threadIdx.x == 0) minima[static_cast<int64_t>(t) * gridDim.x + blockIdx.x] = minimum;
  }
}

// thresholds (steps, G), one block for each.
template <typename T>
__global__ void thresholds_kernel(ResidualLayout layout, const T* __restrict__ minima,
                                  T* __restrict__ thresholds) {
  __shared__ T scratch[kBlock / kWarp];
  const int64_t chunks = layout.num_chunks();
  const int64_t group = blockIdx.x;
  const int64_t t = blockIdx.y;
  T smallest = infinity<T>();
  for (int64_t c = threadIdx.x; c < chunks; c += kBlock) {
    if (layout.chunk(c).group == group) smallest = nan_min(smallest, minima[t * chunks + c]);
  }
  const T minimum = block_reduce(smallest, scratch, infinity<T>(), Minimum<T>());
  if (threadIdx.x == 0) thresholds[t * gridDim.x + group] = minimum;
}

// Adds up one term per step over the block, in double, and stores it for the chunk.
__device__ void store_sums(double sum, int64_t count, int64_t index, double* sums,
                           int64_t* counts) {
  __shared__ double sum_scratch[kBlock / kWarp];
  __shared__ int64_t count_scratch[kBlock / kWarp];
  const double total = block_reduce(sum, sum_scratch, 0.0, Sum<double>());
  const int64_t number = block_reduce(count, count_scratch, int64_t(0), Sum<int64_t>());
  if (threadIdx.x == 0) {
    sums[index] = total;
    counts[index] = number;
  }
}

// refined (steps, N, R); sums and counts (steps + 1, chunks).
template <typename T>
__global__ void losses_kernel(Inputs<T> in, const T* __restrict__ thresholds, bool keep,
                              T* __restrict__ refined, double* __restrict__ sums,
                              int64_t* __restrict__ counts) {
  const Chunk chunk = in.layout.chunk(blockIdx.x);
  const int64_t groups = in.layout.num_groups();
  for (int s = 0; s <= in.steps; ++s) {
    const int64_t offset = (s - 1) * in.step_stride();
    const T* previous = s <= 1 ? in.logits : refined + offset - in.step_stride();
    const T threshold = s == 0 ? T(0) : thresholds[(s - 1) * groups + chunk.group];
    double sum = 0;
    int64_t count = 0;
    // A thread meets the same anchors at every step, so it may read what it wrote.
    for (int64_t i = chunk.begin + threadIdx.x; i < chunk.end; i += kBlock) {
      const bool foreground = in.labels[i] > 0;
      bool selected = in.labels[i] >= 0;
      T logit = previous[i];
      if (s > 0) {
        selected = selected & passes(logit, threshold, infinity<T>());
        const T updated = logit + in.residuals[offset + i];
        logit = (!keep || selected) ? updated : logit;
        refined[offset + i] = logit;
      }
      if (selected) {
        sum += bce(foreground ? logit : -logit);
        ++count;
      }
    }
    store_sums(sum, count, s * static_cast<int64_t>(gridDim.x) + blockIdx.x, sums, counts);
  }
}

// losses and counts (steps + 1,), one block for each.
template <typename T>
__global__ void totals_kernel(const double* __restrict__ sums, const int64_t* __restrict__ counts,
                              int64_t chunks, T* __restrict__ losses,
                              int64_t* __restrict__ total_counts) {
  __shared__ double sum_scratch[kBlock / kWarp];
  __shared__ int64_t count_scratch[kBlock / kWarp];
  const int64_t first = blockIdx.x * chunks;
  double sum = 0;
  int64_t count = 0;
  for (int64_t c = threadIdx.x; c < chunks; c += kBlock) {
    sum += sums[first + c];
    count += counts[first + c];
  }
  const double total = block_reduce(sum, sum_scratch, 0.0, Sum<double>());
  const int64_t number = block_reduce(count, count_scratch, int64_t(0), Sum<int64_t>());
  if (threadIdx.x == 0) {
    losses[blockIdx.x] = static_cast<T>(total);
    total_counts[blockIdx.x] = number;
  }
}

template <typename T>
__global__ void gradients_kernel(Inputs<T> in, const T* __restrict__ grad_losses,
                                 const T* __restrict__ thresholds, Detach detach, bool keep,
                                 T* __restrict__ grad_logits, T* __restrict__ grad_residuals) {
  const Chunk chunk = in.layout.chunk(blockIdx.x);
  const int64_t groups = in.layout.num_groups();
  for (int64_t i = chunk.begin + threadIdx.x; i < chunk.end; i += kBlock) {
    const bool valid = in.labels[i] >= 0;
    const T sign = in.labels[i] > 0 ? T(1) : T(-1);
    T later = T(0);  // gradient of the losses of later steps, where those reach this one
    for (int t = in.steps - 1; t >= 0; --t) {
      const int64_t at = t * in.step_stride() + i;
      const T previous = t == 0 ? in.logits[i] : in.residuals[at - in.step_stride()];
      const T threshold = thresholds[t * groups + chunk.group];
      const bool selected = valid & passes(previous, threshold, infinity<T>());
      T gradient = later;
      if (selected) {
        gradient -= grad_losses[t + 1] * sign * sigmoid_of_negative(sign * in.residuals[at]);
      }
      if (detach != Detach::kAll) later = gradient;
      grad_residuals[at] = (!keep || selected) ? gradient : T(0);
    }
    T gradient = detach == Detach::kNone ? later : T(0);
    if (valid) gradient -= grad_losses[0] * sign * sigmoid_of_negative(sign * in.logits[i]);
    grad_logits[i] = gradient;
  }
}

template <typename T>
void find_thresholds(const Inputs<T>& in, const Tensor& like, Tensor& thresholds,
                     cudaStream_t stream) {
  if (thresholds.numel() == 0) return;
  if (in.layout.scope == Scope::kNone) {
    torch::stable::fill_(thresholds, -std::numeric_limits<double>::infinity());
    return;
  }
  const int64_t chunks = in.layout.num_chunks();
  const int64_t steps = in.steps;
  Tensor minima = torch::stable::new_empty(like, {steps, chunks});
  if (chunks > 0) {
    minima_kernel<T>
        <<<static_cast<unsigned>(chunks), kBlock, 0, stream>>>(in, minima.mutable_data_ptr<T>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  const dim3 grid(static_cast<unsigned>(in.layout.num_groups()), static_cast<unsigned>(in.steps));
  thresholds_kernel<T><<<grid, kBlock, 0, stream>>>(in.layout, minima.const_data_ptr<T>(),
                                                    thresholds.mutable_data_ptr<T>());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void forward(const Inputs<T>& in, bool keep, const Tensor& like, Tensor& losses, Tensor& counts,
             Tensor& thresholds, Tensor& refined) {
  const cudaStream_t stream = current_stream(like);
  find_thresholds(in, like, thresholds, stream);
  const int64_t chunks = in.layout.num_chunks();
  const int64_t terms = in.steps + 1;
  Tensor partial_sums = torch::stable::new_empty(like, {terms, chunks}, ScalarType::Double);
  Tensor partial_counts = torch::stable::new_empty(like, {terms, chunks}, ScalarType::Long);
  if (chunks > 0) {
    losses_kernel<T><<<static_cast<unsigned>(chunks), kBlock, 0, stream>>>(
        in, thresholds.const_data_ptr<T>(), keep, refined.mutable_data_ptr<T>(),
        partial_sums.mutable_data_ptr<double>(), partial_counts.mutable_data_ptr<int64_t>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  totals_kernel<T><<<static_cast<unsigned>(terms), kBlock, 0, stream>>>(
      partial_sums.const_data_ptr<double>(), partial_counts.const_data_ptr<int64_t>(), chunks,
      losses.mutable_data_ptr<T>(), counts.mutable_data_ptr<int64_t>());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
Inputs<T> make_inputs(const Tensor& logits, const Tensor& residuals, const Tensor& labels,
                      const ResidualLayout& layout) {
  return Inputs<T>{logits.const_data_ptr<T>(), residuals.const_data_ptr<T>(),
                   labels.const_data_ptr<int8_t>(), static_cast<int>(residuals.size(0)), layout};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> residual_objectness_bce(
    const Tensor& logits, const Tensor& residuals, const Tensor& labels, std::string detach,
    std::string min_scope, std::string unselected, std::vector<int64_t> level_sizes) {
  check_forward(logits, residuals, labels);
  const ResidualOptions options =
      parse_options(logits, detach, min_scope, unselected, level_sizes, kChunk);
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const Tensor o = torch::stable::contiguous(logits);
  const Tensor r = torch::stable::contiguous(residuals);
  const Tensor y = torch::stable::contiguous(labels);
  const int64_t steps = r.size(0);
  Tensor losses = torch::stable::new_empty(o, {steps + 1});
  Tensor counts = torch::stable::new_empty(o, {steps + 1}, ScalarType::Long);
  Tensor thresholds = torch::stable::new_empty(o, {steps, options.layout.num_groups()});
  Tensor refined = torch::stable::new_empty(o, r.sizes());
  dispatch_float(o, [&](auto scalar) {
    using T = decltype(scalar);
    forward(make_inputs<T>(o, r, y, options.layout), options.keep, o, losses, counts, thresholds,
            refined);
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
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const Tensor g = torch::stable::contiguous(grad_losses);
  const Tensor o = torch::stable::contiguous(logits);
  const Tensor refined_c = torch::stable::contiguous(refined);
  const Tensor y = torch::stable::contiguous(labels);
  const Tensor thr = torch::stable::contiguous(thresholds);
  Tensor grad_logits = torch::stable::new_empty(o, o.sizes());
  Tensor grad_residuals = torch::stable::new_empty(o, refined_c.sizes());
  const int64_t chunks = options.layout.num_chunks();
  if (chunks == 0) return {grad_logits, grad_residuals};
  dispatch_float(o, [&](auto scalar) {
    using T = decltype(scalar);
    gradients_kernel<T><<<static_cast<unsigned>(chunks), kBlock, 0, current_stream(o)>>>(
        make_inputs<T>(o, refined_c, y, options.layout), g.const_data_ptr<T>(),
        thr.const_data_ptr<T>(), options.detach, options.keep, grad_logits.mutable_data_ptr<T>(),
        grad_residuals.mutable_data_ptr<T>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {grad_logits, grad_residuals};
}

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CUDA, m) {
  m.impl("residual_objectness_bce", TORCH_BOX(&resobj::residual_objectness_bce));
  m.impl("_residual_objectness_bce_backward", TORCH_BOX(&resobj::residual_objectness_bce_backward));
}
