// What every CUDA kernel file needs: the device, the current stream, deterministic block
// reductions.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "resobj/tensor_checks.h"

namespace resobj {

constexpr int kBlock = 256;
constexpr int kWarp = 32;

// What the host functions of include/resobj/*_host.h require of every CUDA backend.
struct CudaBackend {
  // Makes a tensor's device the current one during its lifetime.
  class DeviceGuard {
   public:
    explicit DeviceGuard(const Tensor& tensor) : guard_(tensor.get_device_index()) {}

   private:
    torch::stable::accelerator::DeviceGuard guard_;
  };
};

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Combines one value from each of the kBlock threads, always in the same order. The result is valid
// in thread 0. `scratch` holds kBlock / kWarp values in shared memory and may be reused on return.
template <typename T, typename Combine>
__device__ T block_reduce(T value, T* scratch, T neutral, const Combine& combine) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = combine(value, __shfl_down_sync(0xffffffffu, value, offset));
  }
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  if (warp == 0) {
    value = lane < kBlock / kWarp ? scratch[lane] : neutral;
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      value = combine(value, __shfl_down_sync(0xffffffffu, value, offset));
    }
  }
  __syncthreads();
  return value;
}

}  // namespace resobj
