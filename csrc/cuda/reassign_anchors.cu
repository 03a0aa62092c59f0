// reassign_anchors on CUDA: refines the anchors, matches them, and encodes their matched boxes.

#include "anchor_matcher.h"
#include "resobj/reassign_anchors_host.h"

namespace resobj {
namespace {

// One thread per anchor of the batch.
template <typename T>
__global__ void refine_kernel(const T* anchors, const T* deltas, int64_t num_anchors,
                              int64_t anchor_stride, int64_t count, DeltaWeights<T> weights,
                              T* boxes) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t anchor = i / num_anchors * anchor_stride + i % num_anchors;
  set_box(boxes, i, refine(anchors + 4 * anchor, deltas + 4 * i, weights));
}

// The same for the images of one launch, whose offsets are a kernel argument.
template <typename T>
__global__ void encode_kernel(MatchInput<T> input, const int64_t* gt_index, const int8_t* label,
                              DeltaWeights<T> weights, T* targets) {
  const int64_t anchor = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (anchor >= input.num_anchors) return;
  const int64_t i = (input.first_image + blockIdx.y) * input.num_anchors + anchor;
  T deltas[4] = {T(0), T(0), T(0), T(0)};
  if (label[i] == 1) {
    const int64_t gt = input.offsets.gts[blockIdx.y] + gt_index[i];
    encode(input.anchors + 4 * i, input.gts + 4 * gt, weights, deltas);
  }
  for (int d = 0; d < 4; ++d) targets[4 * i + d] = deltas[d];
}

struct Cuda : MatchingCuda {
  template <typename T>
  static void refine(const ReassignArguments& arguments, const DeltaWeights<T>& weights,
                     Tensor& boxes) {
    if (arguments.count() == 0) return;
    const auto blocks = static_cast<unsigned>(ceil_div(arguments.count(), kBlock));
    refine_kernel<T><<<blocks, kBlock, 0, current_stream(boxes)>>>(
        arguments.anchors.const_data_ptr<T>(), arguments.deltas.const_data_ptr<T>(),
        arguments.num_anchors, arguments.anchor_stride, arguments.count(), weights,
        boxes.mutable_data_ptr<T>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  template <typename T>
  static void encode(const MatchArguments& arguments, const MatchResult& result,
                     const DeltaWeights<T>& weights, Tensor& targets) {
    if (arguments.num_images == 0 || arguments.num_anchors == 0) return;
    MatchInput<T> input{arguments.anchors.const_data_ptr<T>(),
                        arguments.gts.boxes.const_data_ptr<T>(),
                        nullptr,
                        arguments.num_anchors,
                        arguments.anchor_stride,
                        0,
                        {}};
    const auto blocks = static_cast<unsigned>(ceil_div(arguments.num_anchors, kBlock));
    for (int64_t first = 0; first < arguments.num_images; first += kImagesPerLaunch) {
      const int64_t last = smaller<int64_t>(first + kImagesPerLaunch, arguments.num_images);
      input.first_image = first;
      for (int64_t image = first; image <= last; ++image) {
        input.offsets.gts[image - first] = arguments.gts.offsets[image];
      }
      const dim3 grid(blocks, static_cast<unsigned>(last - first));
      encode_kernel<T><<<grid, kBlock, 0, current_stream(targets)>>>(
          input, result.gt_index.const_data_ptr<int64_t>(), result.label.const_data_ptr<int8_t>(),
          weights, targets.mutable_data_ptr<T>());
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CUDA, m) {
  using namespace resobj;
  m.impl("reassign_anchors", TORCH_BOX(&host::reassign_anchors<Cuda>));
}
