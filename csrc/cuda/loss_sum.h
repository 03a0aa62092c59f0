// Sums of loss terms on CUDA: one partial sum per block, then one block adds those. The order is
// fixed, and nothing waits for the device.
#pragma once

#include "cuda_utils.h"
#include "resobj/macros.h"

namespace resobj {

constexpr int64_t kTermsPerBlock = 8 * kBlock;

struct SumDoubles {
  __device__ double operator()(double a, double b) const { return a + b; }
};

// The number of terms for a block when `left` remain.
__device__ inline int block_terms(int64_t left) {
  return static_cast<int>(left < kTermsPerBlock ? left : kTermsPerBlock);
}

// `term(begin, offset)` is the loss term begin + offset; `begin` is the same for the whole block.
template <typename Term>
__global__ void partial_sums_kernel(int64_t count, Term term, double* __restrict__ partial) {
  __shared__ double scratch[kBlock / kWarp];
  const int64_t begin = blockIdx.x * kTermsPerBlock;
  const int terms = block_terms(count - begin);
  double sum = 0;
  for (int offset = threadIdx.x; offset < terms; offset += kBlock) sum += term(begin, offset);
  sum = block_reduce(sum, scratch, 0.0, SumDoubles());
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <typename T>
__global__ void total_kernel(const double* __restrict__ partial, int64_t blocks, T* total) {
  __shared__ double scratch[kBlock / kWarp];
  double sum = 0;
  for (int64_t b = threadIdx.x; b < blocks; b += kBlock) sum += partial[b];
  sum = block_reduce(sum, scratch, 0.0, SumDoubles());
  if (threadIdx.x == 0) *total = static_cast<T>(sum);
}

// Writes the sum of the terms [0, count) to the scalar `total` of type T.
template <typename T, typename Term>
void sum_terms(int64_t count, const Term& term, Tensor& total) {
  const cudaStream_t stream = current_stream(total);
  const int64_t blocks = ceil_div(count, kTermsPerBlock);
  Tensor partial = new_tensor(total, {blocks}, ScalarType::Double);
  if (blocks > 0) {
    partial_sums_kernel<<<static_cast<unsigned>(blocks), kBlock, 0, stream>>>(
        count, term, partial.mutable_data_ptr<double>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  total_kernel<T><<<1, kBlock, 0, stream>>>(partial.const_data_ptr<double>(), blocks,
                                            total.mutable_data_ptr<T>());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// Calls write(begin, offset) for each index begin + offset in [0, count).
template <typename Write>
__global__ void for_each_kernel(int64_t count, Write write) {
  const int64_t begin = blockIdx.x * kTermsPerBlock;
  const int terms = block_terms(count - begin);
  for (int offset = threadIdx.x; offset < terms; offset += kBlock) write(begin, offset);
}

template <typename Write>
void for_each(int64_t count, const Write& write, const Tensor& like) {
  if (count == 0) return;
  const unsigned blocks = static_cast<unsigned>(ceil_div(count, kTermsPerBlock));
  for_each_kernel<<<blocks, kBlock, 0, current_stream(like)>>>(count, write);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace resobj
