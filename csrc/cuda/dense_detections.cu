// dense_detections on CUDA, without waiting for the device: all sizes are known beforehand, and
// candidates are counted on the device.
//
// A segment is one level of one image. Its best `topk` candidates are found by radix selection, one
// pass over the logits per digit of (score, position). Passes do nothing once the digits so far
// select exactly as many candidates as wanted; with fewer candidates than `topk`, the usual case,
// the first pass is the last. A further pass collects them in any order; the number of better ones
// is a candidate's rank. One block per image then suppresses them in tiles. Atomics are only used
// on integers, so results are bit-identical from run to run.

#include "cuda_utils.h"
#include "resobj/candidate_keys.h"
#include "resobj/dense_detections_host.h"
#include "resobj/nms_math.h"

namespace resobj {
namespace {

constexpr int kBucketsPerThread = kBuckets / kBlock;
constexpr int kLoads = 8;                        // in flight per thread
constexpr int64_t kChunk = 4 * kLoads * kBlock;  // logits per block
constexpr int kImagesPerLaunch = 64;  // kernel arguments, such as their sizes, are limited

template <typename T>
struct Head {
  DenseLevel<T> levels[kMaxDenseLevels];
  int64_t chunk_begin[kMaxDenseLevels + 1];  // of an image's blocks
  int64_t slot_begin[kMaxDenseLevels + 1];   // of an image's candidates
  int num_levels;
  ScoreRule<T> rule;
  DeltaRule<T> deltas;
  T bounds[kMaxDenseFactors];  // what logits must reach

  RESOBJ_HD int64_t num_chunks() const { return chunk_begin[num_levels]; }
  RESOBJ_HD int64_t num_slots() const { return slot_begin[num_levels]; }
  RESOBJ_HD int64_t num_logits(int l) const { return levels[l].num_rows() * rule.num_classes; }
  RESOBJ_HD int64_t limit(int l) const { return slot_begin[l + 1] - slot_begin[l]; }
};

// Initially all zeros.
struct Selection {
  Key least;      // so far; candidates with larger leading digits are selected
  int64_t taken;  // the number of those
  int32_t done;   // the best are exactly those from `least` on
};

struct Scratch {
  Selection* selections;     // by segment
  uint32_t* histograms;      // kBuckets per segment, zeroed before each pass
  uint32_t* num_candidates;  // by segment, initially zero
};

// Calls visit(segment, candidate) for the logits of this block's chunk that pass the threshold.
template <typename T, typename Visit>
__device__ void for_each_candidate(const Head<T>& head, int64_t block, const Visit& visit) {
  const int64_t image = block / head.num_chunks();
  const int64_t chunk = block % head.num_chunks();
  int l = 0;
  while (chunk >= head.chunk_begin[l + 1]) ++l;
  const DenseLevel<T>& level = head.levels[l];
  const int64_t num_classes = head.rule.num_classes;
  const int64_t channels = level.num_anchors * num_classes;
  const bool planes = has_planes(level.cls, channels, level.num_cells);
  const T* logits = level.cls.data + image * level.cls.image;
  const int64_t begin = (chunk - head.chunk_begin[l]) * kChunk;
  const int64_t end = smaller(begin + kChunk, head.num_logits(l));
  for (int64_t first = begin + threadIdx.x; first < end; first += kLoads * kBlock) {
    // Both loops must be unrolled to keep the array in registers; NaN is not a hit.
    T loaded[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      loaded[i] = i * kBlock < end - first ? logits[first + i * kBlock] : static_cast<T>(NAN);
    }
    unsigned hits = 0;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) hits |= unsigned(loaded[i] >= head.bounds[0]) << i;
    for (; hits != 0; hits &= hits - 1) {
      const int64_t element = first + (__ffs(static_cast<int>(hits)) - 1) * kBlock;
      const int64_t channel = planes ? element / level.num_cells : element % channels;
      const int64_t cell = planes ? element % level.num_cells : element / channels;
      const int64_t anchor = channel / num_classes;
      bool active = true;
      for (int f = 1; f < head.rule.num_factors; ++f) {
        active &= level.factors[f - 1].at(image, anchor, cell) >= head.bounds[f];
      }
      if (!active) continue;
      const int64_t row = cell * level.num_anchors + anchor;
      const int64_t k = channel % num_classes;
      T probabilities[kMaxDenseFactors];
      load_probabilities(level, head.rule, image, row, k, probabilities);
      const T score = fused_score(head.rule, probabilities);
      if (!(score > head.rule.score_thresh)) continue;
      visit(image * head.num_levels + l, Candidate<T>{score, l, row * num_classes + k});
    }
  }
}

// Counts digit `d` of the candidates that share the preceding digits with the selection.
template <typename T>
__global__ void histogram_kernel(const __grid_constant__ Head<T> head, Scratch scratch, int d) {
  __shared__ uint32_t counts[kBuckets];
  const int64_t chunk = blockIdx.x % head.num_chunks();
  int64_t segment = blockIdx.x / head.num_chunks() * head.num_levels;
  for (int l = 0; chunk >= head.chunk_begin[l + 1]; ++l) ++segment;
  if (scratch.selections[segment].done) return;
  const Key least = scratch.selections[segment].least;
  for (int b = threadIdx.x; b < kBuckets; b += kBlock) counts[b] = 0;
  __syncthreads();
  bool any = false;
  for_each_candidate(head, blockIdx.x, [&](int64_t, const Candidate<T>& candidate) {
    const Key key = make_key(candidate);
    if (!same_digits<T>(key, least, d)) return;
    atomicAdd(counts + digit<T>(key, d), 1u);
    any = true;
  });
  if (!__syncthreads_or(any)) return;
  uint32_t* histogram = scratch.histograms + segment * kBuckets;
  for (int b = threadIdx.x; b < kBuckets; b += kBlock) {
    if (counts[b] != 0) atomicAdd(histogram + b, counts[b]);
  }
}

// One block per segment finds the bucket that contains the last of the wanted candidates.
template <typename T>
__global__ void select_kernel(const __grid_constant__ Head<T> head, Scratch scratch, int d) {
  __shared__ int64_t sums[kBlock];
  const int64_t segment = blockIdx.x;
  Selection& selection = scratch.selections[segment];
  if (selection.done) return;
  const int64_t wanted = head.limit(static_cast<int>(segment % head.num_levels)) - selection.taken;
  // Thread 0 has the highest buckets.
  const int highest = kBuckets - 1 - static_cast<int>(threadIdx.x) * kBucketsPerThread;
  uint32_t* histogram = scratch.histograms + segment * kBuckets;
  uint32_t own[kBucketsPerThread];
  int64_t sum = 0;
  for (int i = 0; i < kBucketsPerThread; ++i) {
    own[i] = histogram[highest - i];
    histogram[highest - i] = 0;
    sum += own[i];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int offset = 1; offset < kBlock; offset *= 2) {
    const int64_t above = static_cast<int>(threadIdx.x) >= offset ? sums[threadIdx.x - offset] : 0;
    __syncthreads();
    sums[threadIdx.x] += above;
    __syncthreads();
  }
  const int64_t last = sums[threadIdx.x];
  if (threadIdx.x == kBlock - 1 && last <= wanted) selection.done = 1;  // all are selected
  int64_t before = last - sum;
  if (before >= wanted || last < wanted || sums[kBlock - 1] <= wanted) return;
  int i = 0;
  while (before + own[i] < wanted) before += own[i++];
  const uint64_t value = static_cast<uint64_t>(highest - i) << digit_shift<T>(d);
  (d < kScoreDigits<T> ? selection.least.score : selection.least.position) |= value;
  selection.taken += before;
  selection.done = before + own[i] == wanted;
}

template <typename T>
__global__ void collect_kernel(const __grid_constant__ Head<T> head, Scratch scratch,
                               Candidate<T>* slots) {
  const int64_t image = blockIdx.x / head.num_chunks();
  for_each_candidate(head, blockIdx.x, [&](int64_t segment, const Candidate<T>& candidate) {
    if (!(make_key(candidate) >= scratch.selections[segment].least)) return;
    const uint32_t slot = atomicAdd(scratch.num_candidates + segment, 1u);
    slots[image * head.num_slots() + head.slot_begin[candidate.level] + slot] = candidate;
  });
}

// Sorts each image's candidates: each is placed after all better ones.
template <typename T>
__global__ void rank_kernel(const __grid_constant__ Head<T> head, Scratch scratch,
                            const Candidate<T>* slots, Candidate<T>* ranked) {
  __shared__ Candidate<T> tile[kBlock];
  const int64_t blocks = ceil_div(head.num_slots(), kBlock);
  const int64_t image = blockIdx.x / blocks;
  const int64_t slot = blockIdx.x % blocks * kBlock + threadIdx.x;
  const uint32_t* num_candidates = scratch.num_candidates + image * head.num_levels;
  slots += image * head.num_slots();
  bool exists = false;
  if (slot < head.num_slots()) {
    int l = 0;
    while (slot >= head.slot_begin[l + 1]) ++l;
    exists = slot - head.slot_begin[l] < num_candidates[l];
  }
  if (!__syncthreads_or(exists)) return;
  const Candidate<T> own = exists ? slots[slot] : Candidate<T>{};
  int64_t rank = 0;
  for (int l = 0; l < head.num_levels; ++l) {
    for (int64_t first = 0; first < num_candidates[l]; first += kBlock) {
      const int count = static_cast<int>(smaller<int64_t>(kBlock, num_candidates[l] - first));
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < count) {
        tile[threadIdx.x] = slots[head.slot_begin[l] + first + threadIdx.x];
      }
      __syncthreads();
      for (int i = 0; i < count; ++i) rank += is_better(tile[i], own);
    }
  }
  if (exists) ranked[image * head.num_slots() + rank] = own;
}

// Sizes to clip to, of the images of a launch.
struct ImageSizes {
  bool known;
  int32_t height[kImagesPerLaunch], width[kImagesPerLaunch];
};

// The kept boxes and classes, D per image; boxes are not clipped.
template <typename T>
struct Kept {
  Box<T>* boxes;
  int64_t* classes;
};

// One block per image. Tiles of kBlock candidates are tested against the kept boxes, all at once,
// and then among themselves, best first.
template <typename T>
__global__ void suppress_kernel(const __grid_constant__ Head<T> head, Scratch scratch,
                                const Candidate<T>* ranked, Kept<T> kept,
                                DetectionOutputs<T> outputs,
                                const __grid_constant__ ImageSizes sizes, int64_t first_image,
                                int64_t max_detections, T threshold) {
  __shared__ Box<T> boxes[kBlock];
  __shared__ int64_t classes[kBlock];
  __shared__ bool alive[kBlock];
  const int64_t image = first_image + blockIdx.x;
  const int own = static_cast<int>(threadIdx.x);
  int64_t total = 0;
  for (int l = 0; l < head.num_levels; ++l)
    total += scratch.num_candidates[image * head.num_levels + l];
  kept.boxes += image * max_detections;
  kept.classes += image * max_detections;
  int64_t count = 0;  // the same in all threads
  for (int64_t first = 0; first < total && count < max_detections; first += kBlock) {
    const bool exists = first + own < total;
    Candidate<T> candidate{};
    Box<T> box{};
    if (exists) {
      candidate = ranked[image * head.num_slots() + first + own];
      const int64_t row = candidate.position / head.rule.num_classes;
      box = decode_box(head.levels[candidate.level], head.deltas, image, row);
    }
    const int64_t own_class = candidate.position % head.rule.num_classes;
    const T box_area = area(box);
    bool survives = exists && is_finite(box);
    for (int64_t j = 0; survives && j < count; ++j) {
      const Box<T> better = kept.boxes[j];
      survives = kept.classes[j] != own_class ||
                 !suppresses(better, area(better), box, box_area, threshold);
    }
    boxes[own] = box;
    classes[own] = own_class;
    alive[own] = survives;
    const int size = static_cast<int>(smaller<int64_t>(kBlock, total - first));
    for (int i = 0; i < size && count < max_detections; ++i) {
      __syncthreads();  // candidate i is decided
      if (!alive[i]) continue;
      if (own == i) {
        kept.boxes[count] = box;
        kept.classes[count] = own_class;
        if (sizes.known) {
          box = clip(box, static_cast<T>(sizes.height[blockIdx.x]),
                     static_cast<T>(sizes.width[blockIdx.x]));
        }
        outputs.write(image * max_detections + count, head.levels[candidate.level], head.rule,
                      image, candidate, box);
      } else if (own > i && alive[own] && classes[i] == own_class) {
        const Box<T> better = boxes[i];
        alive[own] = !suppresses(better, area(better), box, box_area, threshold);
      }
      ++count;
    }
    __syncthreads();  // all have read the shared tile, and the kept boxes are visible
  }
  if (own == 0) outputs.counts[image] = count;
  for (int64_t d = count + own; d < max_detections; d += kBlock) {
    outputs.pad(image * max_detections + d, head.rule.num_factors);
  }
}

template <typename T>
Head<T> make_head(const DenseInputs<T>& inputs, int64_t topk) {
  Head<T> head{};
  head.num_levels = static_cast<int>(inputs.levels.size());
  head.rule = inputs.rule;
  head.deltas = inputs.deltas;
  for (int f = 0; f < inputs.rule.num_factors; ++f) {
    head.bounds[f] =
        lowest_logit(inputs.rule.score_thresh, inputs.rule.exponents[f], inputs.rule.floors[f]);
  }
  for (int l = 0; l < head.num_levels; ++l) {
    head.levels[l] = inputs.levels[l];
    const int64_t logits = head.num_logits(l);
    STD_TORCH_CHECK(logits <= kMaxLogits, kDenseOp, ": cls_logits has a level of more than ",
                    kMaxLogits, " logits");
    head.chunk_begin[l + 1] = head.chunk_begin[l] + ceil_div(logits, kChunk);
    head.slot_begin[l + 1] = head.slot_begin[l] + smaller(topk, logits);
  }
  return head;
}

// Memory in bytes from torch's allocator.
template <typename T>
T* allocate_bytes(Tensors& owner, const Tensor& like, int64_t count, bool zeros) {
  const std::vector<int64_t> size{count * static_cast<int64_t>(sizeof(T))};
  owner.push_back(zeros ? torch::stable::new_zeros(like, size, ScalarType::Byte)
                        : torch::stable::new_empty(like, size, ScalarType::Byte));
  return static_cast<T*>(owner.back().mutable_data_ptr());
}

unsigned grid_size(int64_t blocks) {
  STD_TORCH_CHECK(blocks <= int64_t(0x7fffffff), kDenseOp, ": cls_logits are too large");
  return static_cast<unsigned>(blocks);
}

// Writes the candidates of all images to `ranked`, best first.
template <typename T>
void find_candidates(const Head<T>& head, const Scratch& scratch, int64_t num_images,
                     Candidate<T>* slots, Candidate<T>* ranked, cudaStream_t stream) {
  if (head.num_chunks() == 0) return;
  const unsigned chunks = grid_size(num_images * head.num_chunks());
  const unsigned segments = grid_size(num_images * head.num_levels);
  for (int d = 0; d < kScoreDigits<T> + kPositionDigits; ++d) {
    histogram_kernel<T><<<chunks, kBlock, 0, stream>>>(head, scratch, d);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    select_kernel<T><<<segments, kBlock, 0, stream>>>(head, scratch, d);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  collect_kernel<T><<<chunks, kBlock, 0, stream>>>(head, scratch, slots);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  const unsigned blocks = grid_size(num_images * ceil_div(head.num_slots(), kBlock));
  rank_kernel<T><<<blocks, kBlock, 0, stream>>>(head, scratch, slots, ranked);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

struct Cuda : CudaBackend {
  template <typename T>
  static void detect(const DenseInputs<T>& inputs, const DenseOptions& options,
                     DenseResult& result) {
    if (inputs.num_images == 0) return;
    const Head<T> head = make_head(inputs, options.topk);
    static_assert(sizeof(head) + sizeof(ImageSizes) < 3800, "kernel arguments are limited");
    const Tensor& like = result.counts;
    const int64_t segments = inputs.num_images * head.num_levels;
    const int64_t slots = inputs.num_images * head.num_slots();
    const int64_t kept_boxes = inputs.num_images * options.max_detections;
    Tensors owner;
    const Scratch scratch{allocate_bytes<Selection>(owner, like, segments, true),
                          allocate_bytes<uint32_t>(owner, like, segments * kBuckets, true),
                          allocate_bytes<uint32_t>(owner, like, segments, true)};
    auto* candidates = allocate_bytes<Candidate<T>>(owner, like, slots, false);
    auto* ranked = allocate_bytes<Candidate<T>>(owner, like, slots, false);
    const Kept<T> kept{allocate_bytes<Box<T>>(owner, like, kept_boxes, false),
                       allocate_bytes<int64_t>(owner, like, kept_boxes, false)};
    const cudaStream_t stream = current_stream(like);
    find_candidates(head, scratch, inputs.num_images, candidates, ranked, stream);
    for (int64_t first = 0; first < inputs.num_images; first += kImagesPerLaunch) {
      const int64_t count = smaller<int64_t>(kImagesPerLaunch, inputs.num_images - first);
      ImageSizes sizes{};
      sizes.known = !options.image_sizes.empty();
      for (int64_t i = 0; sizes.known && i < count; ++i) {
        sizes.height[i] = static_cast<int32_t>(options.image_sizes[2 * (first + i)]);
        sizes.width[i] = static_cast<int32_t>(options.image_sizes[2 * (first + i) + 1]);
      }
      suppress_kernel<T><<<static_cast<unsigned>(count), kBlock, 0, stream>>>(
          head, scratch, ranked, kept, point_at<T>(result), sizes, first, options.max_detections,
          round_down<T>(options.nms_thresh));
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CUDA, m) {
  using namespace resobj;
  m.impl("dense_detections", TORCH_BOX(&host::dense_detections<Cuda>));
}
