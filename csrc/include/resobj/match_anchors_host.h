// match_anchors on the host, shared by both backends. A backend has
//   match(arguments, rule, result)
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "resobj/box_checks.h"
#include "resobj/match_anchors_math.h"

namespace resobj {

constexpr const char* kMatchOp = "match_anchors";

// Boxes of a batch, concatenated: image i has rows offsets[i] to offsets[i + 1].
struct RaggedBoxes {
  Tensor boxes;  // contiguous
  std::vector<int64_t> offsets;

  int64_t size(int64_t image) const { return offsets[image + 1] - offsets[image]; }
  int64_t total() const { return offsets.back(); }
};

struct MatchArguments {
  Tensor anchors;  // contiguous
  int64_t num_images, num_anchors;
  int64_t anchor_stride;  // anchors between those of one image and the next, 0 if shared
  RaggedBoxes gts;
  RaggedBoxes regions;  // to ignore; empty without ignore_boxes
  bool allow_low_quality, d2_compat;
  double ignore_iof;
};

struct MatchResult {
  Tensor gt_index, ious, label;
};

inline std::vector<int64_t> make_offsets(const char* name, const char* boxes_name,
                                         const std::vector<int64_t>& sizes, int64_t rows) {
  for (const int64_t size : sizes) {
    STD_TORCH_CHECK(size >= 0, kMatchOp, ": ", name, " has a negative size");
  }
  STD_TORCH_CHECK(sums_to(sizes, rows), kMatchOp, ": ", name, " do not sum to the rows of ",
                  boxes_name);
  std::vector<int64_t> offsets{0};
  for (const int64_t size : sizes) offsets.push_back(offsets.back() + size);
  return offsets;
}

inline MatchArguments parse_match(const Tensor& anchors, const Tensor& gt_boxes,
                                  const std::vector<int64_t>& gt_sizes, bool allow_low_quality,
                                  bool d2_compat, const std::optional<Tensor>& ignore_boxes,
                                  const std::vector<int64_t>& ignore_sizes, double ignore_iof) {
  const int64_t images = static_cast<int64_t>(gt_sizes.size());
  check_devices(kMatchOp, {{"anchors", anchors}, {"gt_boxes", gt_boxes}});
  check_dtypes(kMatchOp, {{"anchors", anchors}, {"gt_boxes", gt_boxes}});
  check_boxes(kMatchOp, {{"gt_boxes", gt_boxes}});
  const int64_t dim = anchors.dim();
  STD_TORCH_CHECK(
      (dim == 2 || (dim == 3 && anchors.size(0) == images)) && anchors.size(dim - 1) == 4, kMatchOp,
      ": anchors must have shape (number, 4) or (", images, ", number, 4)");
  MatchArguments parsed;
  parsed.anchors = torch::stable::contiguous(anchors);
  parsed.num_images = images;
  parsed.num_anchors = anchors.size(dim - 2);
  parsed.anchor_stride = dim == 3 ? parsed.num_anchors : 0;
  parsed.gts = {torch::stable::contiguous(gt_boxes),
                make_offsets("gt_sizes", "gt_boxes", gt_sizes, gt_boxes.size(0))};
  parsed.regions = {parsed.gts.boxes, std::vector<int64_t>(images + 1, 0)};
  if (ignore_boxes.has_value()) {
    check_boxes(kMatchOp, {{"gt_boxes", gt_boxes}, {"ignore_boxes", *ignore_boxes}});
    STD_TORCH_CHECK(static_cast<int64_t>(ignore_sizes.size()) == images, kMatchOp,
                    ": ignore_sizes must have one size per image");
    parsed.regions = {
        torch::stable::contiguous(*ignore_boxes),
        make_offsets("ignore_sizes", "ignore_boxes", ignore_sizes, ignore_boxes->size(0))};
  }
  STD_TORCH_CHECK(is_positive(anchors, ignore_iof), kMatchOp, ": ignore_iof must be above 0");
  parsed.allow_low_quality = allow_low_quality;
  parsed.d2_compat = d2_compat;
  parsed.ignore_iof = ignore_iof;
  return parsed;
}

template <typename T>
MatchRule<T> parse_rule(const std::vector<double>& thresholds, const std::vector<int64_t>& labels) {
  STD_TORCH_CHECK(thresholds.size() <= kMaxThresholds, kMatchOp, ": at most ", kMaxThresholds,
                  " thresholds");
  STD_TORCH_CHECK(labels.size() == thresholds.size() + 1, kMatchOp,
                  ": labels must be one more than thresholds");
  for (const double threshold : thresholds) {
    // One that is rounded to 0 would make anchors without overlap foreground.
    STD_TORCH_CHECK(is_positive<T>(threshold), kMatchOp, ": thresholds must be positive");
  }
  for (const int64_t label : labels) {
    STD_TORCH_CHECK(label >= -1 && label <= 1, kMatchOp, ": labels must be -1, 0 or 1");
  }
  // The box of a foreground anchor is read, and images without boxes get the first label.
  STD_TORCH_CHECK(labels[0] != 1, kMatchOp, ": the first of labels must not be 1");
  MatchRule<T> rule{};
  rule.num_thresholds = static_cast<int>(thresholds.size());
  // Rounded to the precision of the IoUs before the comparison, as in torch.
  for (int i = 0; i < rule.num_thresholds; ++i) rule.thresholds[i] = static_cast<T>(thresholds[i]);
  for (int i = 0; i <= rule.num_thresholds; ++i) rule.labels[i] = static_cast<int8_t>(labels[i]);
  return rule;
}

inline MatchResult allocate_matches(const MatchArguments& arguments) {
  const auto allocate = [&](ScalarType dtype) {
    return torch::stable::new_empty(arguments.anchors,
                                    {arguments.num_images, arguments.num_anchors}, dtype);
  };
  return {allocate(ScalarType::Long), allocate(arguments.anchors.scalar_type()),
          allocate(ScalarType::Char)};
}

namespace host {

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor> match_anchors(
    const Tensor& anchors, const Tensor& gt_boxes, const std::vector<int64_t>& gt_sizes,
    const std::vector<double>& thresholds, const std::vector<int64_t>& labels,
    bool allow_low_quality, bool d2_compat, const std::optional<Tensor>& ignore_boxes,
    const std::vector<int64_t>& ignore_sizes, double ignore_iof) {
  const MatchArguments arguments = parse_match(anchors, gt_boxes, gt_sizes, allow_low_quality,
                                               d2_compat, ignore_boxes, ignore_sizes, ignore_iof);
  const typename Backend::DeviceGuard guard(anchors);
  MatchResult result = allocate_matches(arguments);
  dispatch_float(arguments.anchors, [&](auto scalar) {
    Backend::match(arguments, parse_rule<decltype(scalar)>(thresholds, labels), result);
  });
  return {result.gt_index, result.ious, result.label};
}

}  // namespace host
}  // namespace resobj
