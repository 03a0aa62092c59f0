// reassign_anchors on the host, shared by both backends. A backend has
//   refine(arguments, delta weights, boxes)
//   match(match arguments, rule, result)
//   encode(match arguments, result, delta weights, targets)
#pragma once

#include <cmath>

#include "resobj/match_anchors_host.h"
#include "resobj/reassign_anchors_math.h"

namespace resobj {

constexpr const char* kReassignOp = "reassign_anchors";

struct ReassignArguments {
  Tensor anchors, deltas;  // contiguous
  int64_t num_images, num_anchors;
  int64_t anchor_stride;  // anchors between those of one image and the next, 0 if shared

  ReassignArguments(const Tensor& a, const Tensor& d, int64_t images) {
    check_devices(kReassignOp, {{"anchors", a}, {"deltas", d}});
    check_dtypes(kReassignOp, {{"anchors", a}, {"deltas", d}});
    STD_TORCH_CHECK(d.dim() == 3 && d.size(0) == images && d.size(2) == 4, kReassignOp,
                    ": deltas must have shape (", images, ", number, 4)");
    const int64_t dim = a.dim();
    STD_TORCH_CHECK((dim == 2 || (dim == 3 && a.size(0) == images)) && a.size(dim - 1) == 4 &&
                        a.size(dim - 2) == d.size(1),
                    kReassignOp, ": anchors must have shape (", d.size(1), ", 4) or (", images,
                    ", ", d.size(1), ", 4)");
    anchors = torch::stable::contiguous(a);
    deltas = torch::stable::contiguous(d);
    num_images = images;
    num_anchors = d.size(1);
    anchor_stride = dim == 3 ? num_anchors : 0;
  }

  int64_t count() const { return num_images * num_anchors; }

  // Uninitialised, four coordinates per anchor.
  Tensor new_boxes() const {
    return torch::stable::new_empty(deltas, {num_images, num_anchors, int64_t(4)});
  }
};

template <typename T>
DeltaWeights<T> parse_weights(const std::vector<double>& weights, double scale_clamp) {
  STD_TORCH_CHECK(weights.size() == 4, kReassignOp, ": weights must be four numbers");
  STD_TORCH_CHECK(!std::isnan(scale_clamp), kReassignOp, ": scale_clamp must be a number");
  DeltaWeights<T> rule;
  for (int i = 0; i < 4; ++i) {
    STD_TORCH_CHECK(is_positive<T>(weights[i]), kReassignOp, ": weights must be positive");
    rule.weights[i] = static_cast<T>(weights[i]);
    rule.factors[i] = static_cast<T>(1 / weights[i]);
  }
  rule.scale_clamp = static_cast<T>(scale_clamp);
  return rule;
}

namespace host {

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> reassign_anchors(
    const Tensor& anchors, const Tensor& deltas, const Tensor& gt_boxes,
    const std::vector<int64_t>& gt_sizes, const std::vector<double>& weights, double scale_clamp,
    const std::vector<double>& thresholds, const std::vector<int64_t>& labels,
    bool allow_low_quality, bool d2_compat, const std::optional<Tensor>& ignore_boxes,
    const std::vector<int64_t>& ignore_sizes, double ignore_iof) {
  const ReassignArguments refining(anchors, deltas, static_cast<int64_t>(gt_sizes.size()));
  const typename Backend::DeviceGuard guard(deltas);
  Tensor boxes = refining.new_boxes();
  Tensor targets = refining.new_boxes();
  const MatchArguments matching = parse_match(boxes, gt_boxes, gt_sizes, allow_low_quality,
                                              d2_compat, ignore_boxes, ignore_sizes, ignore_iof);
  MatchResult result = allocate_matches(matching);
  dispatch_float(boxes, [&](auto scalar) {
    using T = decltype(scalar);
    const DeltaWeights<T> delta_weights = parse_weights<T>(weights, scale_clamp);
    Backend::refine(refining, delta_weights, boxes);
    Backend::match(matching, parse_rule<T>(thresholds, labels), result);
    Backend::encode(matching, result, delta_weights, targets);
  });
  return {boxes, result.gt_index, result.ious, result.label, targets};
}

}  // namespace host
}  // namespace resobj
