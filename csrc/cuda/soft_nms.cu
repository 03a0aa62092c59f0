// soft_nms on CUDA: one block per class repeatedly takes the box with the highest score left and
// decays the others. The result is then ordered by the scores with which boxes were taken.

#include "class_groups.h"

namespace resobj {
namespace {

// The best of a block so far: the highest score (ties: the lowest index).
template <typename T>
struct Best {
  T score;  // negative if there is none
  int64_t index;
  int64_t position;

  __device__ bool better_than(const Best& other) const {
    return score > other.score || (score == other.score && index < other.index);
  }
};

template <typename T>
__device__ Best<T> best_of_block(const Best<T>& own, Best<T>* scratch) {
  scratch[threadIdx.x] = own;
  __syncthreads();
  for (int offset = kBlock / 2; offset > 0; offset /= 2) {
    if (threadIdx.x < offset && scratch[threadIdx.x + offset].better_than(scratch[threadIdx.x])) {
      scratch[threadIdx.x] = scratch[threadIdx.x + offset];
    }
    __syncthreads();
  }
  const Best<T> best = scratch[0];
  __syncthreads();
  return best;
}

// Takes up to `limit` boxes of the class that starts at `begin`. `left` holds, by position, the
// scores of boxes not yet taken; each thread reads and writes only its own.
template <typename T>
__device__ void take_class(const GroupedBoxes<T>& boxes, int64_t begin, const SoftRule<T>& rule,
                           double min_score, int64_t limit, Best<T>* scratch, T* left,
                           T* taken_scores) {
  const int64_t box_class = boxes.classes[begin];
  const int64_t own = begin + threadIdx.x;
  for (int64_t p = own; boxes.in_class(p, box_class); p += kBlock) {
    const T score = boxes.scores[p];
    left[p] = score >= T(0) ? score : T(-1);
  }
  for (int64_t taken = 0; taken < limit; ++taken) {
    Best<T> best{T(-1), 0, 0};
    for (int64_t p = own; boxes.in_class(p, box_class); p += kBlock) {
      if (left[p] < T(0)) continue;
      const Best<T> candidate{left[p], boxes.index(p), p};
      if (candidate.better_than(best)) best = candidate;
    }
    best = best_of_block(best, scratch);
    if (best.score < T(0) || static_cast<double>(best.score) < min_score) return;
    if (threadIdx.x == 0) taken_scores[best.index] = best.score;
    const Box<T> taken_box = boxes.box(best.position);
    const T taken_area = area(taken_box);
    for (int64_t p = own; boxes.in_class(p, box_class); p += kBlock) {
      const Box<T> box = boxes.box(p);
      const T iou = overlap<Overlap::kIou>(taken_box, taken_area, box, area(box));
      if (left[p] >= T(0)) left[p] = p == best.position ? T(-1) : left[p] * rule.weight(iou);
    }
  }
}

template <typename T>
__global__ void take_kernel(GroupedBoxes<T> boxes, SoftRule<T> rule, double min_score,
                            int64_t limit, T* left, T* taken_scores) {
  __shared__ Best<T> scratch[kBlock];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kStartsPerBlock;
  const int64_t last = smaller(first + kStartsPerBlock, boxes.count);
  for (int64_t p = first; p < last; ++p) {
    if (!boxes.starts_class(p)) continue;
    take_class(boxes, p, rule, min_score, limit, scratch, left, taken_scores);
  }
}

template <typename T>
__global__ void fill_kernel(T* values, int64_t count, T value) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) values[i] = value;
}

// `scores` descend; those of boxes that were not taken are negative.
template <typename T>
__global__ void finish_kernel(const T* scores, const int64_t* indices, int64_t limit, int64_t rows,
                              int64_t* keep, T* new_scores, int64_t* num_kept) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const bool kept = row < limit && scores[row] >= T(0);
  if (row < rows) {
    keep[row] = kept ? indices[row] : -1;
    new_scores[row] = kept ? scores[row] : T(0);
  }
  const bool next_kept = row + 1 < limit && scores[row + 1] >= T(0);
  if (kept && !next_kept) *num_kept = row + 1;
  if (row == 0 && !kept) *num_kept = 0;
}

// The boxes taken, on the device.
struct Taken {
  Tensor keep, new_scores;  // (rows,), then -1 and 0
  Tensor count;             // ()

  std::tuple<Tensor, Tensor> trimmed() {
    const int64_t number = wait_for_count(count);
    return {torch::stable::narrow(keep, 0, 0, number),
            torch::stable::narrow(new_scores, 0, 0, number)};
  }

  std::tuple<Tensor, Tensor, Tensor> padded() const { return {keep, new_scores, count}; }
};

struct Cuda : CudaBackend {
  template <typename T>
  static Taken take(const Candidates& candidates, const SoftRule<T>& rule, double min_score,
                    const OutputSize& size) {
    const cudaStream_t stream = current_stream(candidates.boxes);
    const int64_t count = candidates.count();
    Taken taken{torch::stable::new_empty(candidates.idxs, {size.rows}),
                torch::stable::new_empty(candidates.scores, {size.rows}),
                torch::stable::new_empty(candidates.idxs, {})};
    Tensor scores = torch::stable::new_empty(candidates.scores, {count});
    Tensor indices = candidates.idxs;  // stays empty without boxes
    if (count > 0) {
      const ClassGroups<T> groups(candidates, /*finite_only=*/true, stream);
      Tensor left = torch::stable::new_empty(candidates.scores, {count});
      fill_kernel<T>
          <<<blocks_for(count), kBlock, 0, stream>>>(scores.mutable_data_ptr<T>(), count, T(-1));
      STD_CUDA_KERNEL_LAUNCH_CHECK();
      take_kernel<T><<<groups.start_blocks(), kBlock, 0, stream>>>(
          groups.boxes(), rule, min_score, size.limit, left.mutable_data_ptr<T>(),
          scores.mutable_data_ptr<T>());
      STD_CUDA_KERNEL_LAUNCH_CHECK();
      std::tie(scores, indices) = stable_sort(scores, /*descending=*/true);
    }
    finish_kernel<T><<<blocks_for(size.rows), kBlock, 0, stream>>>(
        scores.const_data_ptr<T>(), indices.const_data_ptr<int64_t>(), size.limit, size.rows,
        taken.keep.mutable_data_ptr<int64_t>(), taken.new_scores.mutable_data_ptr<T>(),
        taken.count.mutable_data_ptr<int64_t>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    return taken;
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CUDA, m) {
  using namespace resobj;
  m.impl("soft_nms", TORCH_BOX((&host::soft_nms<Cuda, /*padded=*/false>)));
  m.impl("soft_nms_padded", TORCH_BOX((&host::soft_nms<Cuda, /*padded=*/true>)));
}
