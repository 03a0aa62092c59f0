// Boxes grouped by class and ordered by score on the device. Nothing is reported to the host, not
// even the number of classes, so it never waits and the code can be captured in a CUDA graph.
//
// Sorting is torch's, through its dispatcher: stable, on the current stream, without waiting.
#pragma once

#include <array>
#include <optional>
#include <tuple>

#include "cuda_utils.h"
#include "resobj/nms_host.h"

namespace resobj {

constexpr int kStartsPerBlock = 64;  // positions that a block checks for the start of a class

// Per position: by class, then by descending score, then by index.
template <typename T>
struct GroupedBoxes {
  const T* boxes;
  const T* scores;  // NaN for a dropped box
  const int64_t* classes;
  const int64_t* ranks;    // the rank among all boxes by descending score
  const int64_t* by_rank;  // the index of the box of each rank
  int64_t count;

  __device__ bool starts_class(int64_t p) const { return p == 0 || classes[p] != classes[p - 1]; }
  __device__ bool in_class(int64_t p, int64_t box_class) const {
    return p < count && classes[p] == box_class;
  }
  __device__ int64_t index(int64_t p) const { return by_rank[ranks[p]]; }
  __device__ Box<T> box(int64_t p) const { return get_box(boxes, p); }
};

// (values, indices) of a stable sort.
inline std::tuple<Tensor, Tensor> stable_sort(const Tensor& values, bool descending) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(values), from(std::optional<bool>(true)),
                                    from(int64_t(-1)), from(descending)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// `keys` have the order of the scores, with -0 equal to 0 and NaN for dropped boxes.
template <typename T>
__global__ void key_kernel(const T* scores, int64_t count, bool finite_only, T* keys) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const T score = scores[i];
  keys[i] = finite_only && !isfinite(score) ? static_cast<T>(NAN) : score + T(0);
}

template <typename Id>
__global__ void class_kernel(const Id* ids, const int64_t* by_rank, int64_t count, Id* classes) {
  const int64_t rank = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (rank < count) classes[rank] = ids[by_rank[rank]];
}

template <typename T>
__global__ void gather_kernel(const T* boxes, const T* sorted_keys, const int64_t* by_rank,
                              const int64_t* ranks, int64_t count, T* boxes_out, T* scores_out) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (p >= count) return;
  const int64_t rank = ranks[p];
  const T* box = boxes + 4 * by_rank[rank];
  for (int c = 0; c < 4; ++c) boxes_out[4 * p + c] = box[c];
  scores_out[p] = sorted_keys[rank];
}

inline unsigned blocks_for(int64_t count) {
  return static_cast<unsigned>(ceil_div(count > 0 ? count : 1, kBlock));
}

// Owns the memory of GroupedBoxes. There must be at least one box.
template <typename T>
class ClassGroups {
 public:
  // A NaN score drops a box; with `finite_only` an infinite one does too.
  ClassGroups(const Candidates& candidates, bool finite_only, cudaStream_t stream)
      : count_(candidates.count()) {
    using torch::stable::new_empty;
    const unsigned blocks = blocks_for(count_);
    Tensor keys = new_empty(candidates.scores, {count_});
    key_kernel<T><<<blocks, kBlock, 0, stream>>>(candidates.scores.const_data_ptr<T>(), count_,
                                                 finite_only, keys.mutable_data_ptr<T>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    Tensor sorted_keys;
    std::tie(sorted_keys, by_rank_) = stable_sort(keys, /*descending=*/true);
    Tensor classes = new_empty(candidates.idxs, {count_});
    class_kernel<int64_t><<<blocks, kBlock, 0, stream>>>(candidates.idxs.const_data_ptr<int64_t>(),
                                                         by_rank_.const_data_ptr<int64_t>(), count_,
                                                         classes.mutable_data_ptr<int64_t>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    std::tie(classes_, ranks_) = stable_sort(classes, /*descending=*/false);
    boxes_ = new_empty(candidates.boxes, {count_, 4});
    scores_ = new_empty(candidates.scores, {count_});
    gather_kernel<T><<<blocks, kBlock, 0, stream>>>(
        candidates.boxes.const_data_ptr<T>(), sorted_keys.const_data_ptr<T>(),
        by_rank_.const_data_ptr<int64_t>(), ranks_.const_data_ptr<int64_t>(), count_,
        boxes_.mutable_data_ptr<T>(), scores_.mutable_data_ptr<T>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  GroupedBoxes<T> boxes() const {
    return {boxes_.const_data_ptr<T>(),         scores_.const_data_ptr<T>(),
            classes_.const_data_ptr<int64_t>(), ranks_.const_data_ptr<int64_t>(),
            by_rank_.const_data_ptr<int64_t>(), count_};
  }

  // The number of blocks of a kernel in which each checks kStartsPerBlock positions.
  unsigned start_blocks() const { return static_cast<unsigned>(ceil_div(count_, kStartsPerBlock)); }

 private:
  int64_t count_;
  Tensor boxes_, scores_, classes_, ranks_, by_rank_;
};

// The number in a one-element tensor. The host waits for it as in Tensor.item(), so that
// torch.cuda.set_sync_debug_mode reports it.
inline int64_t wait_for_count(const Tensor& count) {
  int64_t value = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_item_int64(count.get(), &value));
  return value;
}

}  // namespace resobj
