// batched_nms on CUDA: one block per class processes its boxes by descending score in tiles.
//
// Each thread tests one box of the tile against all kept boxes, then against the earlier boxes of
// the tile, which gives a row of bits. From these bits one warp decides the tile, box after box.
// Memory is linear in the number of boxes; a bit matrix of all pairs would be quadratic. A final
// kernel with one block collects the kept boxes in the order of all scores.

#include "class_groups.h"

namespace resobj {
namespace {

constexpr int kTile = kBlock;
constexpr int kWords = kTile / 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <typename T>
struct Tile {
  Box<T> boxes[kTile];
  T areas[kTile];
  uint32_t suppressors[kTile][kWords];  // per box, the boxes of the tile that would suppress it
  uint32_t alive[kWords];               // not suppressed by a box before the tile
  uint32_t kept[kWords];
};

// Decides a tile in the first warp: a box is kept if it is alive and no kept box suppresses it. At
// most `room` boxes are kept.
template <typename T>
__device__ void settle(Tile<T>& tile, int64_t room) {
  const int lane = threadIdx.x;
  const int word = lane % kWords;
  uint32_t kept = 0;  // the word of this lane
  for (int w = 0; w < kWords; ++w) {
    // Classes are often small, so iterate over set bits instead of the tile.
    for (uint32_t left = tile.alive[w]; left != 0 && room > 0; left &= left - 1) {
      const int bit = __ffs(static_cast<int>(left)) - 1;
      const uint32_t suppressors = tile.suppressors[32 * w + bit][word];
      if (__any_sync(kAllLanes, (kept & suppressors) != 0)) continue;
      if (word == w) kept |= uint32_t(1) << bit;
      --room;
    }
  }
  if (lane < kWords) tile.kept[lane] = kept;
}

// Processes the class that starts at `begin`. `kept_boxes` has room for all boxes, by position.
template <typename T>
__device__ void suppress_class(const GroupedBoxes<T>& boxes, int64_t begin, T threshold,
                               int64_t limit, Tile<T>& tile, T* kept_boxes, int8_t* kept_by_rank) {
  const int64_t box_class = boxes.classes[begin];
  const int thread = threadIdx.x;
  int64_t num_kept = 0;
  for (int64_t first = begin; boxes.in_class(first, box_class) && num_kept < limit;
       first += kTile) {
    const int64_t p = first + thread;
    const bool exists = boxes.in_class(p, box_class);
    const Box<T> own = exists ? boxes.box(p) : Box<T>{};
    const T own_area = area(own);
    bool alive = exists && boxes.scores[p] == boxes.scores[p];
    for (int64_t k = 0; k < num_kept; k += kTile) {
      const int size = static_cast<int>(smaller<int64_t>(kTile, num_kept - k));
      if (thread < size) {
        const T* box = kept_boxes + 4 * (begin + k + thread);
        tile.boxes[thread] = Box<T>{box[0], box[1], box[2], box[3]};
        tile.areas[thread] = area(tile.boxes[thread]);
      }
      __syncthreads();
      for (int j = 0; j < size && alive; ++j) {
        alive = !suppresses(tile.boxes[j], tile.areas[j], own, own_area, threshold);
      }
      __syncthreads();
    }
    tile.boxes[thread] = own;
    tile.areas[thread] = own_area;
    const uint32_t alive_bits = __ballot_sync(kAllLanes, alive);
    if (thread % kWarp == 0) tile.alive[thread / kWarp] = alive_bits;
    __syncthreads();
    for (int w = 0; w < kWords; ++w) {
      uint32_t bits = 0;
      for (int k = 0; k < 32 && alive && 32 * w + k < thread; ++k) {
        const int j = 32 * w + k;
        const bool would = suppresses(tile.boxes[j], tile.areas[j], own, own_area, threshold);
        bits |= uint32_t(would) << k;
      }
      tile.suppressors[thread][w] = bits;
    }
    __syncthreads();
    if (thread < kWarp) settle(tile, limit - num_kept);
    __syncthreads();
    int before = 0;
    int total = 0;
    for (int w = 0; w < kWords; ++w) {
      const uint32_t bits = tile.kept[w];
      if (w < thread / 32) before += __popc(bits);
      if (w == thread / 32) before += __popc(bits & ((uint32_t(1) << (thread % 32)) - 1));
      total += __popc(bits);
    }
    if ((tile.kept[thread / 32] >> (thread % 32) & 1) != 0) {
      T* box = kept_boxes + 4 * (begin + num_kept + before);
      box[0] = own.x1;
      box[1] = own.y1;
      box[2] = own.x2;
      box[3] = own.y2;
      kept_by_rank[boxes.ranks[p]] = 1;
    }
    num_kept += total;
    __syncthreads();
  }
}

template <typename T>
__global__ void suppress_kernel(GroupedBoxes<T> boxes, T threshold, int64_t limit, T* kept_boxes,
                                int8_t* kept_by_rank) {
  __shared__ Tile<T> tile;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kStartsPerBlock;
  const int64_t last = smaller(first + kStartsPerBlock, boxes.count);
  for (int64_t p = first; p < last; ++p) {
    if (!boxes.starts_class(p)) continue;
    suppress_class(boxes, p, threshold, limit, tile, kept_boxes, kept_by_rank);
  }
}

// One block: the kept boxes by rank, at most `limit`, padded with -1 up to `rows`.
__global__ void collect_kernel(const int8_t* kept_by_rank, const int64_t* by_rank, int64_t count,
                               int64_t limit, int64_t rows, int64_t* keep, int64_t* num_kept) {
  __shared__ int warp_totals[kBlock / kWarp];
  const int thread = threadIdx.x;
  int64_t base = 0;
  for (int64_t first = 0; first < count && base < limit; first += kBlock) {
    const int64_t rank = first + thread;
    const bool kept = rank < count && kept_by_rank[rank] != 0;
    const unsigned bits = __ballot_sync(kAllLanes, kept);
    if (thread % kWarp == 0) warp_totals[thread / kWarp] = __popc(bits);
    __syncthreads();
    int64_t place = base + __popc(bits & ((1u << (thread % kWarp)) - 1));
    for (int w = 0; w < kBlock / kWarp; ++w) {
      if (w < thread / kWarp) place += warp_totals[w];
      base += warp_totals[w];
    }
    if (kept && place < limit) keep[place] = by_rank[rank];
    __syncthreads();
  }
  const int64_t total = smaller(base, limit);
  for (int64_t row = total + thread; row < rows; row += kBlock) keep[row] = -1;
  if (thread == 0) *num_kept = total;
}

// The kept boxes, on the device.
struct Kept {
  Tensor keep;   // (rows,), -1 after the kept boxes
  Tensor count;  // ()

  Tensor trimmed() { return torch::stable::narrow(keep, 0, 0, wait_for_count(count)); }
  std::tuple<Tensor, Tensor> padded() const { return {keep, count}; }
};

struct Cuda : CudaBackend {
  template <typename T>
  static Kept suppress(const Candidates& candidates, T threshold, const OutputSize& size) {
    const cudaStream_t stream = current_stream(candidates.boxes);
    const int64_t count = candidates.count();
    Kept kept{torch::stable::new_empty(candidates.idxs, {size.rows}),
              torch::stable::new_empty(candidates.idxs, {})};
    Tensor kept_by_rank = torch::stable::new_zeros(candidates.idxs, {count}, ScalarType::Char);
    const int64_t* by_rank = nullptr;
    std::optional<ClassGroups<T>> groups;
    if (count > 0) {
      groups.emplace(candidates, /*finite_only=*/false, stream);
      by_rank = groups->boxes().by_rank;
      Tensor kept_boxes = torch::stable::new_empty(candidates.boxes, {count, 4});
      suppress_kernel<T><<<groups->start_blocks(), kBlock, 0, stream>>>(
          groups->boxes(), threshold, size.limit, kept_boxes.mutable_data_ptr<T>(),
          kept_by_rank.mutable_data_ptr<int8_t>());
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
    collect_kernel<<<1, kBlock, 0, stream>>>(
        kept_by_rank.const_data_ptr<int8_t>(), by_rank, count, size.limit, size.rows,
        kept.keep.mutable_data_ptr<int64_t>(), kept.count.mutable_data_ptr<int64_t>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    return kept;
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CUDA, m) {
  using namespace resobj;
  m.impl("batched_nms", TORCH_BOX((&host::batched_nms<Cuda, /*padded=*/false>)));
  m.impl("batched_nms_padded", TORCH_BOX((&host::batched_nms<Cuda, /*padded=*/true>)));
}
