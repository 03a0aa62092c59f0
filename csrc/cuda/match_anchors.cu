// match_anchors on CUDA.

#include "anchor_matcher.h"

namespace resobj {
namespace {

MatchTuple match_anchors(const Tensor& anchors, const Tensor& gt_boxes,
                         const std::vector<int64_t>& gt_sizes,
                         const std::vector<double>& thresholds, const std::vector<int64_t>& labels,
                         bool allow_low_quality, bool d2_compat,
                         const std::optional<Tensor>& ignore_boxes,
                         const std::vector<int64_t>& ignore_sizes, double ignore_iof) {
  const torch::stable::accelerator::DeviceGuard guard(anchors.get_device_index());
  const MatchArguments arguments = parse_match(anchors, gt_boxes, gt_sizes, allow_low_quality,
                                               d2_compat, ignore_boxes, ignore_sizes, ignore_iof);
  MatchResult result = allocate_matches(arguments);
  dispatch_float(arguments.anchors, [&](auto scalar) {
    using T = decltype(scalar);
    launch(arguments, parse_rule<T>(thresholds, labels), result);
  });
  return {result.gt_index, result.ious, result.label};
}

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CUDA, m) {
  m.impl("match_anchors", TORCH_BOX(&resobj::match_anchors));
}
