// residual_objectness_bce on CUDA: minima per chunk, thresholds, losses per chunk, final sums (four
// launches), and one launch for the gradients. One block per chunk; every reduction has a fixed
// order, and nothing waits for the device.

#include <limits>

#include "cuda_utils.h"
#include "resobj/bce_math.h"
#include "resobj/residual_objectness_bce_host.h"

namespace resobj {
namespace {

constexpr int kPerThread = 4;                      // anchors
constexpr int64_t kAnchors = kPerThread * kBlock;  // per chunk

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

// minima (steps, chunks): see chunk_minima in cpu/residual_objectness_bce.cpp.
template <typename T>
__global__ void minima_kernel(ResidualInputs<T> in, T* __restrict__ minima) {
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

// thresholds (steps, G), one block each, which with `keep` also finds those of the steps before.
template <typename T>
__global__ void thresholds_kernel(ResidualLayout layout, bool keep, const T* __restrict__ minima,
                                  T* __restrict__ thresholds) {
  __shared__ T scratch[kBlock / kWarp];
  const int64_t chunks = layout.num_chunks();
  const int64_t group = blockIdx.x;
  const int64_t step = blockIdx.y;
  T threshold = -infinity<T>();  // valid in thread 0
  for (int64_t t = keep ? 0 : step; t <= step; ++t) {
    T smallest = infinity<T>();
    for (int64_t c = threadIdx.x; c < chunks; c += kBlock) {
      if (layout.chunk(c).group == group) smallest = nan_min(smallest, minima[t * chunks + c]);
    }
    const T minimum = block_reduce(smallest, scratch, infinity<T>(), Minimum<T>());
    threshold = next_threshold(threshold, minimum, keep, infinity<T>());
  }
  if (threadIdx.x == 0) thresholds[step * gridDim.x + group] = threshold;
}

// sums (T+1, kStepSums, chunks).
template <typename T>
__global__ void losses_kernel(ResidualInputs<T> in, const T* __restrict__ thresholds,
                              double* __restrict__ sums) {
  __shared__ double scratch[kBlock / kWarp];
  const Chunk chunk = in.layout.chunk(blockIdx.x);
  const int64_t groups = in.layout.num_groups();
  T logits[kPerThread];  // o_t of the anchors of this thread
  T signs[kPerThread];   // 1 foreground, -1 background, 0 ignored or past the end
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const int64_t i = chunk.begin + threadIdx.x + k * kBlock;
    const int8_t label = i < chunk.end ? in.labels[i] : int8_t(-1);
    signs[k] = label > 0 ? T(1) : (label < 0 ? T(0) : T(-1));
    logits[k] = i < chunk.end ? in.logits[i] : T(0);
  }
  for (int s = 0; s <= in.steps; ++s) {
    const T threshold = s == 0 ? -infinity<T>() : thresholds[(s - 1) * groups + chunk.group];
    double values[kStepSums] = {};
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      if (signs[k] == T(0)) continue;
      const int64_t i = chunk.begin + threadIdx.x + k * kBlock;
      const bool selected = passes(logits[k], threshold, infinity<T>());
      if (s > 0 && (!in.keep || selected))
        logits[k] += in.residuals[(s - 1) * in.step_stride() + i];
      const BceAndScore<T> value = bce_and_score(logits[k], signs[k]);
      values[kLoss] += selected ? value.bce : T(0);
      values[kSelected] += selected;
      const bool foreground = signs[k] > T(0);
      values[kScores] += foreground ? T(0) : value.score;
      values[kScores + 1] += foreground ? value.score : T(0);
      values[kNumbers] += !foreground;
      values[kNumbers + 1] += foreground;
    }
#pragma unroll
    for (int v = 0; v < kStepSums; ++v) {
      const double sum = block_reduce(values[v], scratch, 0.0, Sum<double>());
      if (threadIdx.x == 0) sums[(s * kStepSums + v) * int64_t(gridDim.x) + blockIdx.x] = sum;
    }
  }
}

// The outputs of one step, one block each.
template <typename T>
__global__ void totals_kernel(const double* __restrict__ sums, int64_t chunks,
                              T* __restrict__ losses, int64_t* __restrict__ counts,
                              T* __restrict__ score_sums,
                              int64_t* __restrict__ num_background_foreground) {
  __shared__ double scratch[kBlock / kWarp];
  double totals[kStepSums];
#pragma unroll
  for (int v = 0; v < kStepSums; ++v) {
    const double* values = sums + (int64_t(blockIdx.x) * kStepSums + v) * chunks;
    double sum = 0;
    for (int64_t c = threadIdx.x; c < chunks; c += kBlock) sum += values[c];
    totals[v] = block_reduce(sum, scratch, 0.0, Sum<double>());
  }
  if (threadIdx.x > 0) return;
  losses[blockIdx.x] = static_cast<T>(totals[kLoss]);
  counts[blockIdx.x] = static_cast<int64_t>(totals[kSelected]);
  for (int k = 0; k < 2; ++k) {
    score_sums[2 * blockIdx.x + k] = static_cast<T>(totals[kScores + k]);
    if (blockIdx.x == 0) num_background_foreground[k] = static_cast<int64_t>(totals[kNumbers + k]);
  }
}

template <typename T>
__global__ void gradients_kernel(ResidualInputs<T> in, const T* __restrict__ grad_losses,
                                 const T* __restrict__ thresholds, T* __restrict__ grad_logits,
                                 T* __restrict__ grad_residuals) {
  const Chunk chunk = in.layout.chunk(blockIdx.x);
  const int64_t groups = in.layout.num_groups();
  for (int64_t i = chunk.begin + threadIdx.x; i < chunk.end; i += kBlock) {
    const bool valid = in.labels[i] >= 0;
    const T sign = in.labels[i] > 0 ? T(1) : T(-1);
    const T objectness = in.logits[i];
    T logit = objectness;
    T own[kMaxSteps];         // gradient of only the loss of step t + 1
    bool entered[kMaxSteps];  // whether the residual is part of the logit
#pragma unroll
    for (int t = 0; t < kMaxSteps; ++t) {
      if (t >= in.steps) break;
      const T threshold = thresholds[t * groups + chunk.group];
      const bool selected = valid & passes(logit, threshold, infinity<T>());
      entered[t] = !in.keep | selected;
      if (entered[t]) logit += in.residuals[t * in.step_stride() + i];
      own[t] = T(0);
      if (selected) own[t] = -grad_losses[t + 1] * sign * sigmoid_of_negative(sign * logit);
    }
    T later = T(0);  // gradient of later steps' losses, if it reaches this one
#pragma unroll
    for (int t = kMaxSteps - 1; t >= 0; --t) {
      if (t >= in.steps) continue;
      const T gradient = own[t] + later;
      if (in.detach != Detach::kAll) later = gradient;
      grad_residuals[t * in.step_stride() + i] = entered[t] ? gradient : T(0);
    }
    T gradient = in.detach == Detach::kNone ? later : T(0);
    if (valid) gradient -= grad_losses[0] * sign * sigmoid_of_negative(sign * objectness);
    grad_logits[i] = gradient;
  }
}

template <typename T>
void find_thresholds(const ResidualInputs<T>& in, Tensor& thresholds, cudaStream_t stream) {
  if (thresholds.numel() == 0) return;
  if (in.layout.scope == Scope::kNone) {
    torch::stable::fill_(thresholds, -std::numeric_limits<double>::infinity());
    return;
  }
  const int64_t chunks = in.layout.num_chunks();
  const int64_t steps = in.steps;
  Tensor minima = new_tensor(thresholds, {steps, chunks});
  if (chunks > 0) {
    minima_kernel<T>
        <<<static_cast<unsigned>(chunks), kBlock, 0, stream>>>(in, minima.mutable_data_ptr<T>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  const dim3 grid(static_cast<unsigned>(in.layout.num_groups()), static_cast<unsigned>(in.steps));
  thresholds_kernel<T><<<grid, kBlock, 0, stream>>>(in.layout, in.keep, minima.const_data_ptr<T>(),
                                                    thresholds.mutable_data_ptr<T>());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

struct Cuda : CudaBackend {
  static constexpr int64_t kAnchors = resobj::kAnchors;

  template <typename T>
  static void forward(const ResidualInputs<T>& in, ResidualOutputs& out) {
    const cudaStream_t stream = current_stream(out.losses);
    find_thresholds(in, out.thresholds, stream);
    const int64_t chunks = in.layout.num_chunks();
    const int64_t terms = in.steps + 1;
    Tensor sums = new_tensor(out.losses, {terms, kStepSums, chunks}, ScalarType::Double);
    if (chunks > 0) {
      losses_kernel<T><<<static_cast<unsigned>(chunks), kBlock, 0, stream>>>(
          in, out.thresholds.const_data_ptr<T>(), sums.mutable_data_ptr<double>());
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
    totals_kernel<T><<<static_cast<unsigned>(terms), kBlock, 0, stream>>>(
        sums.const_data_ptr<double>(), chunks, out.losses.mutable_data_ptr<T>(),
        out.counts.mutable_data_ptr<int64_t>(), out.score_sums.mutable_data_ptr<T>(),
        out.num_background_foreground.mutable_data_ptr<int64_t>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  template <typename T>
  static void backward(const ResidualInputs<T>& in, const T* grad_losses, const T* thresholds,
                       Tensor& grad_logits, Tensor& grad_residuals) {
    const int64_t chunks = in.layout.num_chunks();
    if (chunks == 0) return;
    gradients_kernel<T><<<static_cast<unsigned>(chunks), kBlock, 0, current_stream(grad_logits)>>>(
        in, grad_losses, thresholds, grad_logits.mutable_data_ptr<T>(),
        grad_residuals.mutable_data_ptr<T>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CUDA, m) {
  using namespace resobj;
  m.impl("residual_objectness_bce", TORCH_BOX(&host::residual_objectness_bce<Cuda>));
  m.impl("_residual_objectness_bce_backward",
         TORCH_BOX(&host::residual_objectness_bce_backward<Cuda>));
}
