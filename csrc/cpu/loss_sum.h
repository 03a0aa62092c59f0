// Sums of loss terms on the CPU, in an order that does not depend on the number of threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "cpu_backend.h"
#include "instruction_sets.h"
#include "resobj/macros.h"

namespace resobj {

constexpr int64_t kChunk = 2048;       // loss terms computed and added at a time
constexpr int64_t kChunksPerTask = 4;  // with fewer, a second thread does not pay off

// What is computed of a chunk: the loss terms, their gradient, or both in one pass.
enum class Results { kLoss, kGradient, kBoth };

// Partial sums of a chunk: as many as two of the widest vectors hold floats.
constexpr int kLanes = 32;

// Adds up to kChunk values.
template <typename T>
double chunk_sum(const T* values, int64_t count) {
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

// Calls f(begin, end) for each chunk of [0, count).
template <typename F>
void for_each_chunk(int64_t count, const F& f) {
  const int64_t chunks = ceil_div(count, kChunk);
  torch::stable::parallel_for(0, chunks, kChunksPerTask, [&](int64_t first, int64_t last) {
    run_vectorized([&] {
      for (int64_t c = first; c < last; ++c) f(c * kChunk, std::min(count, (c + 1) * kChunk));
    });
  });
}

// Writes the sum of the loss terms [0, count) to the scalar `total` of type T; fill(begin, end,
// terms) computes the terms of one chunk.
template <typename T, typename F>
void sum_terms(int64_t count, const F& fill, Tensor& total) {
  std::vector<double> partial(ceil_div(count, kChunk));
  for_each_chunk(count, [&](int64_t begin, int64_t end) {
    T terms[kChunk];
    fill(begin, end, terms);
    partial[begin / kChunk] = chunk_sum(terms, end - begin);
  });
  double sum = 0;
  for (const double value : partial) sum += value;
  *total.mutable_data_ptr<T>() = static_cast<T>(sum);
}

}  // namespace resobj
