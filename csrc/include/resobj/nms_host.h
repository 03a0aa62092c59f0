// batched_nms, soft_nms and matrix_nms on the host, shared by both backends. A backend has
//   suppress(candidates, threshold, size)    for batched_nms
//   take(candidates, rule, min_score, size)  for soft_nms
//   decay(candidates, rule, result)          for matrix_nms
// The first two return an object with trimmed(), the results of the operator, and padded(), those
// of its padded form.
#pragma once

#include <limits>
#include <string>

#include "resobj/box_checks.h"
#include "resobj/nms_math.h"

namespace resobj {

// Boxes with their scores and classes; contiguous.
struct Candidates {
  Tensor boxes;   // (C, 4)
  Tensor scores;  // (C,) of the same dtype
  Tensor idxs;    // (C,) int64

  int64_t count() const { return boxes.size(0); }
};

inline Candidates parse_candidates(const char* op, const Tensor& boxes, const Tensor& scores,
                                   const Tensor& idxs) {
  check_boxes(op, {{"boxes", boxes}});
  check_devices(op, {{"boxes", boxes}, {"scores", scores}, {"idxs", idxs}});
  check_dtypes(op, {{"boxes", boxes}, {"scores", scores}});
  STD_TORCH_CHECK(idxs.scalar_type() == ScalarType::Long, op, ": idxs must be int64");
  check_one_per_row(op, {"scores", scores}, {"boxes", boxes});
  check_one_per_row(op, {"idxs", idxs}, {"boxes", boxes});
  STD_TORCH_CHECK(boxes.size(0) <= std::numeric_limits<int32_t>::max(), op, ": too many boxes");
  return {torch::stable::contiguous(boxes), torch::stable::contiguous(scores),
          torch::stable::contiguous(idxs)};
}

inline void check_threshold(const char* op, double iou_threshold) {
  STD_TORCH_CHECK(iou_threshold >= 0, op, ": iou_threshold must be 0 or more");
}

template <typename T>
SoftRule<T> parse_soft_rule(const char* op, const std::string& method, double iou_threshold,
                            double sigma, double min_score) {
  STD_TORCH_CHECK(method == "linear" || method == "gaussian", op, ": unknown method ", method);
  check_threshold(op, iou_threshold);
  STD_TORCH_CHECK(is_positive<T>(sigma), op, ": sigma must be positive");
  STD_TORCH_CHECK(min_score >= 0, op, ": min_score must be 0 or more");
  return {method == "linear", round_up<T>(iou_threshold), static_cast<T>(sigma)};
}

template <typename T>
MatrixRule<T> parse_matrix_rule(const char* op, const std::string& kernel, double sigma) {
  STD_TORCH_CHECK(kernel == "linear" || kernel == "gaussian", op, ": unknown kernel ", kernel);
  STD_TORCH_CHECK(is_positive<T>(sigma), op, ": sigma must be positive");
  return {kernel == "linear", static_cast<T>(sigma)};
}

// How many boxes a result can have at most, and how many rows if it is padded.
struct OutputSize {
  int64_t limit;
  int64_t rows;
};

// `max_output` is -1 for all boxes.
inline OutputSize output_size(const char* op, int64_t count, int64_t max_output) {
  STD_TORCH_CHECK(max_output >= -1, op, ": max_output must be -1 or more");
  STD_TORCH_CHECK(max_output <= std::numeric_limits<int32_t>::max(), op,
                  ": max_output must be below 2^31");
  if (max_output < 0) return {count, count};
  return {smaller(max_output, count), max_output};
}

namespace host {

template <typename Backend, bool padded>
auto batched_nms(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                 double iou_threshold, int64_t max_output) {
  const char* op = padded ? "batched_nms_padded" : "batched_nms";
  const Candidates candidates = parse_candidates(op, boxes, scores, idxs);
  check_threshold(op, iou_threshold);
  const OutputSize size = output_size(op, candidates.count(), max_output);
  const typename Backend::DeviceGuard guard(boxes);
  return dispatch_float(boxes, [&](auto scalar) {
    const auto threshold = round_down<decltype(scalar)>(iou_threshold);
    auto kept = Backend::suppress(candidates, threshold, size);
    if constexpr (padded) {
      return kept.padded();
    } else {
      return kept.trimmed();
    }
  });
}

template <typename Backend, bool padded>
auto soft_nms(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
              const std::string& method, double iou_threshold, double sigma, double min_score,
              int64_t max_output) {
  const char* op = padded ? "soft_nms_padded" : "soft_nms";
  const Candidates candidates = parse_candidates(op, boxes, scores, idxs);
  const OutputSize size = output_size(op, candidates.count(), max_output);
  const typename Backend::DeviceGuard guard(boxes);
  return dispatch_float(boxes, [&](auto scalar) {
    using T = decltype(scalar);
    const SoftRule<T> rule = parse_soft_rule<T>(op, method, iou_threshold, sigma, min_score);
    auto taken = Backend::take(candidates, rule, min_score, size);
    if constexpr (padded) {
      return taken.padded();
    } else {
      return taken.trimmed();
    }
  });
}

template <typename Backend>
Tensor matrix_nms(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                  const std::string& kernel, double sigma) {
  const char* op = "matrix_nms";
  const Candidates candidates = parse_candidates(op, boxes, scores, idxs);
  const typename Backend::DeviceGuard guard(boxes);
  Tensor result = torch::stable::new_empty(candidates.scores, {candidates.count()});
  dispatch_float(boxes, [&](auto scalar) {
    Backend::decay(candidates, parse_matrix_rule<decltype(scalar)>(op, kernel, sigma), result);
  });
  return result;
}

}  // namespace host
}  // namespace resobj
