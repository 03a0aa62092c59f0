// reassign_anchors on the CPU: refines the anchors, matches them, and encodes what they matched.

#include "anchor_matcher.h"
#include "loss_sum.h"
#include "resobj/reassign_anchors_checks.h"

namespace resobj {
namespace {

template <typename T>
void refine_all(const ReassignArguments& arguments, const DeltaWeights<T>& rule, Tensor& boxes) {
  const T* anchors = arguments.anchors.const_data_ptr<T>();
  const T* deltas = arguments.deltas.const_data_ptr<T>();
  T* out = boxes.mutable_data_ptr<T>();
  const int64_t stride = arguments.anchor_stride;
  for (int64_t image = 0; image < arguments.num_images; ++image) {
    const T* from = anchors + 4 * image * stride;
    const int64_t first = 4 * image * arguments.num_anchors;
    for_each_chunk(arguments.num_anchors, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Box<T> box = refine(from + 4 * i, deltas + first + 4 * i, rule);
        T* corner = out + first + 4 * i;
        corner[0] = box.x1;
        corner[1] = box.y1;
        corner[2] = box.x2;
        corner[3] = box.y2;
      }
    });
  }
}

template <typename T>
void encode_all(const MatchArguments& arguments, const MatchResult& result,
                const DeltaWeights<T>& rule, Tensor& targets) {
  const T* boxes = arguments.anchors.const_data_ptr<T>();
  const T* gts = arguments.gts.boxes.const_data_ptr<T>();
  const int64_t* index = result.gt_index.const_data_ptr<int64_t>();
  const int8_t* label = result.label.const_data_ptr<int8_t>();
  T* out = targets.mutable_data_ptr<T>();
  for (int64_t image = 0; image < arguments.num_images; ++image) {
    const T* own = gts + 4 * arguments.gts.offsets[image];
    const int64_t first = image * arguments.num_anchors;
    for_each_chunk(arguments.num_anchors, [=](int64_t begin, int64_t end) {
      std::memset(out + 4 * (first + begin), 0, 4 * sizeof(T) * (end - begin));
      for (int64_t i = first + begin; i < first + end; ++i) {
        if (label[i] == 1) encode(boxes + 4 * i, own + 4 * index[i], rule, out + 4 * i);
      }
    });
  }
}

ReassignTuple reassign_anchors(const Tensor& anchors, const Tensor& deltas, const Tensor& gt_boxes,
                               const std::vector<int64_t>& gt_sizes,
                               const std::vector<double>& weights, double scale_clamp,
                               const std::vector<double>& thresholds,
                               const std::vector<int64_t>& labels, bool allow_low_quality,
                               bool d2_compat, const std::optional<Tensor>& ignore_boxes,
                               const std::vector<int64_t>& ignore_sizes, double ignore_iof) {
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
    refine_all(refining, rule, boxes);
    Matcher<T>(arguments, parse_rule<T>(thresholds, labels), result).run();
    encode_all(arguments, result, rule, targets);
  });
  return {boxes, result.gt_index, result.ious, result.label, targets};
}

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  m.impl("reassign_anchors", TORCH_BOX(&resobj::reassign_anchors));
}
