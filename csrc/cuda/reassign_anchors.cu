// reassign_anchors on CUDA: refines the anchors, matches them, and encodes what they matched.

#include "anchor_matcher.h"
#include "resobj/reassign_anchors_checks.h"

namespace resobj {
namespace {

// One thread per anchor of the batch.
template <typename T>
__global__ void refine_kernel(const T* anchors, const T* deltas, int64_t num_anchors,
                              int64_t anchor_stride, int64_t count, DeltaWeights<T> rule,
                              T* boxes) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t anchor = i / num_anchors * anchor_stride + i % num_anchors;
  const Box<T> box = refine(anchors + 4 * anchor, deltas + 4 * i, rule);
  boxes[4 * i] = box.x1;
  boxes[4 * i + 1] = box.y1;
  boxes[4 * i + 2] = box.x2;
  boxes[4 * i + 3] = box.y2;
}

// The same for the images of one launch, whose offsets are a kernel argument.
template <typename T>
__global__ void encode_kernel(MatchInput<T> input, const int64_t* gt_index, const int8_t* label,
                              DeltaWeights<T> rule, T* targets) {
  const int64_t anchor = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (anchor >= input.num_anchors) return;
  const int64_t i = (input.first_image + blockIdx.y) * input.num_anchors + anchor;
  T deltas[4] = {T(0), T(0), T(0), T(0)};
  if (label[i] == 1) {
    const int64_t gt = input.offsets.gts[blockIdx.y] + gt_index[i];
    encode(input.anchors + 4 * i, input.gts + 4 * gt, rule, deltas);
  }
  for (int d = 0; d < 4; ++d) targets[4 * i + d] = deltas[d];
}

template <typename T>
void launch_refine(const ReassignArguments& arguments, const DeltaWeights<T>& rule, Tensor& boxes) {
  if (arguments.count() == 0) return;
  const auto blocks = static_cast<unsigned>(ceil_div(arguments.count(), kBlock));
  refine_kernel<T><<<blocks, kBlock, 0, current_stream(boxes)>>>(
      arguments.anchors.const_data_ptr<T>(), arguments.deltas.const_data_ptr<T>(),
      arguments.num_anchors, arguments.anchor_stride, arguments.count(), rule,
      boxes.mutable_data_ptr<T>());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void launch_encode(const MatchArguments& arguments, const MatchResult& result,
                   const DeltaWeights<T>& rule, Tensor& targets) {
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
        rule, targets.mutable_data_ptr<T>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

ReassignTuple reassign_anchors(const Tensor& anchors, const Tensor& deltas, const Tensor& gt_boxes,
                               const std::vector<int64_t>& gt_sizes,
                               const std::vector<double>& weights, double scale_clamp,
                               const std::vector<double>& thresholds,
                               const std::vector<int64_t>& labels, bool allow_low_quality,
                               bool d2_compat, const std::optional<Tensor>& ignore_boxes,
                               const std::vector<int64_t>& ignore_sizes, double ignore_iof) {
  const torch::stable::accelerator::DeviceGuard guard(deltas.get_device_index());
  const ReassignArguments refining(anchors, deltas, static_cast<int64_t>(gt_sizes.size()));
  Tensor boxes = torch::stable::new_empty(refining.deltas,
                                          {refining.num_images, refining.num_anchors, int64_t(4)});
  Tensor targets = torch::stable::new_empty(
      refining.deltas, {refining.num_images, refining.num_anchors, int64_t(4)});
  const MatchArguments arguments = parse_match(boxes, gt_boxes, gt_sizes, allow_low_quality,
                                               d2_compat, ignore_boxes, ignore_sizes, ignore_iof);
  MatchResult result = allocate_matches(arguments);
  dispatch_float(boxes, [&](auto scalar) {
    using T = decltype(scalar);
    const DeltaWeights<T> rule = parse_weights<T>(weights, scale_clamp);
    launch_refine(refining, rule, boxes);
    launch(arguments, parse_rule<T>(thresholds, labels), result);
    launch_encode(arguments, result, rule, targets);
  });
  return {boxes, result.gt_index, result.ious, result.label, targets};
}

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CUDA, m) {
  m.impl("reassign_anchors", TORCH_BOX(&resobj::reassign_anchors));
}
