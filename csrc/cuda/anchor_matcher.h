// Matching of anchors on CUDA: one thread per anchor, two kernels per launch.
//
// The 32 anchors of a warp are close to each other. Each lane tests one ground truth against their
// bounding box; the warp then visits those that passed, in ascending order. The first kernel finds
// the best box of every anchor and the best IoU of every ground truth, the latter by atomic maxima
// on the bits of non-negative numbers, which do not depend on the order. The second kernel labels
// the anchors that have this IoU and those in ignore regions; the same arithmetic makes its IoUs
// bit-identical.

#pragma once

#include <cmath>

#include "cuda_utils.h"
#include "resobj/bits.h"
#include "resobj/match_anchors_host.h"

namespace resobj {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kImagesPerLaunch = 64;  // kernel arguments, such as their offsets, are limited

struct ImageOffsets {
  int64_t gts[kImagesPerLaunch + 1];
  int64_t regions[kImagesPerLaunch + 1];
};

template <typename T>
struct MatchInput {
  const T* anchors;
  const T* gts;
  const T* regions;
  int64_t num_anchors, anchor_stride;
  int64_t first_image;
  ImageOffsets offsets;  // of the images of this launch
};

template <typename T>
struct MatchOutput {
  int64_t* gt_index;
  T* ious;
  int8_t* label;
  T* best_ious;  // by ground truth, initially 0; null without low-quality matches
};

template <typename T, typename Combine>
__device__ T warp_reduce(T value, const Combine& combine) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

__device__ void atomic_max(float* target, float value) {
  atomicMax(reinterpret_cast<int*>(target), bit_cast<int>(value));
}

__device__ void atomic_max(double* target, double value) {
  atomicMax(reinterpret_cast<long long*>(target), bit_cast<long long>(value));
}

// The anchor of this thread, and the anchors of its warp.
template <typename T>
struct WarpAnchor {
  bool exists;
  int lane;
  int64_t image;   // in this launch
  int64_t output;  // position in the (N, R) results
  Box<T> box;
  T area;
  Box<T> bounds;  // of the warp, ignoring NaN coordinates, which intersect nothing

  __device__ explicit WarpAnchor(const MatchInput<T>& input) {
    const int64_t anchor = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    exists = anchor < input.num_anchors;
    lane = threadIdx.x % kWarp;
    image = blockIdx.y;
    const int64_t whole_image = input.first_image + image;
    output = whole_image * input.num_anchors + anchor;
    // A thread past the end repeats the last anchor, which affects neither bounds nor maxima.
    const int64_t last = input.num_anchors - 1;
    box = get_box(input.anchors, whole_image * input.anchor_stride + smaller(anchor, last));
    area = resobj::area(box);
    const T infinity = static_cast<T>(INFINITY);
    const auto lower = [](T a, T b) { return smaller(a, b); };
    const auto upper = [](T a, T b) { return larger(a, b); };
    bounds.x1 = warp_reduce(smaller(box.x1, infinity), lower);
    bounds.y1 = warp_reduce(smaller(box.y1, infinity), lower);
    bounds.x2 = warp_reduce(larger(box.x2, -infinity), upper);
    bounds.y2 = warp_reduce(larger(box.y2, -infinity), upper);
  }

  // Calls visit(row, box, its area) in all lanes, in ascending order, for each of
  // boxes[begin..end) that may intersect an anchor of the warp.
  template <typename Visit>
  __device__ void for_each_near(const T* boxes, int64_t begin, int64_t end,
                                const Visit& visit) const {
    for (int64_t first = begin; first < end; first += kWarp) {
      bool near = false;
      if (first + lane < end) {
        const Box<T> own = get_box(boxes, first + lane);
        near = (bounds.x1 < own.x2) & (own.x1 < bounds.x2) & (bounds.y1 < own.y2) &
               (own.y1 < bounds.y2);
      }
      unsigned remaining = __ballot_sync(kAllLanes, near);
      while (remaining != 0) {
        const int64_t row = first + __ffs(remaining) - 1;
        remaining &= remaining - 1;
        const Box<T> other = get_box(boxes, row);  // the same address in all lanes
        visit(row, other, resobj::area(other));
      }
    }
  }
};

template <typename T>
__global__ void match_kernel(const __grid_constant__ MatchInput<T> input, MatchOutput<T> output,
                             const __grid_constant__ MatchRule<T> rule) {
  const WarpAnchor<T> anchor(input);
  const int64_t begin = input.offsets.gts[anchor.image];
  const int64_t end = input.offsets.gts[anchor.image + 1];
  T best = T(0);
  int64_t index = end > begin ? 0 : -1;
  anchor.for_each_near(input.gts, begin, end, [&](int64_t row, const Box<T>& gt, T gt_area) {
    const T iou = overlap<Overlap::kIou>(gt, gt_area, anchor.box, anchor.area);
    // Strictly greater, so that the first of several boxes with the same IoU stays.
    if (iou > best) {
      best = iou;
      index = row - begin;
    }
    if (output.best_ious == nullptr) return;
    const T highest = warp_reduce(iou, [](T a, T b) { return larger(a, b); });
    // The plain read may be stale; it only saves atomics that would change nothing.
    if (anchor.lane == 0 && highest > output.best_ious[row]) {
      atomic_max(output.best_ious + row, highest);
    }
  });
  if (!anchor.exists) return;
  output.gt_index[anchor.output] = index;
  output.ious[anchor.output] = best;
  output.label[anchor.output] = rule.label(best);
}

template <typename T>
__global__ void finish_kernel(const __grid_constant__ MatchInput<T> input, MatchOutput<T> output,
                              bool d2_compat, T ignore_iof) {
  const WarpAnchor<T> anchor(input);
  const ImageOffsets& offsets = input.offsets;
  bool foreground = false;
  bool covered = false;
  if (output.best_ious != nullptr) {
    const int64_t begin = offsets.gts[anchor.image];
    const int64_t end = offsets.gts[anchor.image + 1];
    anchor.for_each_near(input.gts, begin, end, [&](int64_t row, const Box<T>& gt, T gt_area) {
      const T iou = overlap<Overlap::kIou>(gt, gt_area, anchor.box, anchor.area);
      foreground |= (iou > T(0)) & (iou == output.best_ious[row]);
    });
    // For a ground truth without overlap the best IoU is 0, which every anchor has.
    bool flooded = false;
    for (int64_t row = begin + anchor.lane; d2_compat && row < end; row += kWarp) {
      flooded |= output.best_ious[row] == T(0);
    }
    foreground |= __any_sync(kAllLanes, flooded);
  }
  anchor.for_each_near(
      input.regions, offsets.regions[anchor.image], offsets.regions[anchor.image + 1],
      [&](int64_t, const Box<T>& region, T region_area) {
        covered |=
            overlap<Overlap::kIof>(region, region_area, anchor.box, anchor.area) >= ignore_iof;
      });
  if (!anchor.exists) return;
  if (foreground) {
    output.label[anchor.output] = 1;
  } else if (covered && output.label[anchor.output] != 1) {
    output.label[anchor.output] = -1;
  }
}

// The backend of match_anchors, and part of that of reassign_anchors.
struct MatchingCuda : CudaBackend {
  template <typename T>
  static void match(const MatchArguments& arguments, const MatchRule<T>& rule,
                    MatchResult& result) {
    if (arguments.num_images == 0 || arguments.num_anchors == 0) return;
    const bool low_quality = arguments.allow_low_quality && arguments.gts.total() > 0;
    MatchInput<T> input{arguments.anchors.const_data_ptr<T>(),
                        arguments.gts.boxes.const_data_ptr<T>(),
                        arguments.regions.boxes.const_data_ptr<T>(),
                        arguments.num_anchors,
                        arguments.anchor_stride,
                        0,
                        {}};
    MatchOutput<T> output{result.gt_index.mutable_data_ptr<int64_t>(),
                          result.ious.mutable_data_ptr<T>(),
                          result.label.mutable_data_ptr<int8_t>(), nullptr};
    Tensor best_ious;
    if (low_quality) {
      best_ious = torch::stable::new_zeros(arguments.anchors, {arguments.gts.total()});
      output.best_ious = best_ious.mutable_data_ptr<T>();
    }
    const cudaStream_t stream = current_stream(result.label);
    const auto blocks = static_cast<unsigned>(ceil_div(arguments.num_anchors, kBlock));
    for (int64_t first = 0; first < arguments.num_images; first += kImagesPerLaunch) {
      const int64_t last = smaller<int64_t>(first + kImagesPerLaunch, arguments.num_images);
      input.first_image = first;
      for (int64_t image = first; image <= last; ++image) {
        input.offsets.gts[image - first] = arguments.gts.offsets[image];
        input.offsets.regions[image - first] = arguments.regions.offsets[image];
      }
      const dim3 grid(blocks, static_cast<unsigned>(last - first));
      match_kernel<T><<<grid, kBlock, 0, stream>>>(input, output, rule);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
      if (!low_quality && arguments.regions.total() == 0) continue;
      finish_kernel<T><<<grid, kBlock, 0, stream>>>(input, output, arguments.d2_compat,
                                                    static_cast<T>(arguments.ignore_iof));
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  }
};

}  // namespace
}  // namespace resobj
