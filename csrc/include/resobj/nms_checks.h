// Argument handling of the suppression operators that both backends share (host only).
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
  STD_TORCH_CHECK(sigma > 0, op, ": sigma must be above 0");
  STD_TORCH_CHECK(min_score >= 0, op, ": min_score must be 0 or more");
  return {method == "linear", round_up<T>(iou_threshold), static_cast<T>(sigma)};
}

template <typename T>
MatrixRule<T> parse_matrix_rule(const char* op, const std::string& kernel, double sigma) {
  STD_TORCH_CHECK(kernel == "linear" || kernel == "gaussian", op, ": unknown kernel ", kernel);
  STD_TORCH_CHECK(sigma > 0, op, ": sigma must be above 0");
  return {kernel == "linear", static_cast<T>(sigma)};
}

// How many rows the result can have: all boxes, or no more than max_output unless that is -1.
inline int64_t output_limit(const char* op, int64_t count, int64_t max_output) {
  STD_TORCH_CHECK(max_output >= -1, op, ": max_output must be -1 or more");
  return max_output < 0 || max_output > count ? count : max_output;
}

}  // namespace resobj
