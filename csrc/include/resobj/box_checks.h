// Argument handling of the box operators that both backends share (host only).
#pragma once

#include <initializer_list>
#include <string>

#include "resobj/box_math.h"
#include "resobj/tensor_checks.h"

namespace resobj {

inline void check_boxes(const char* op, std::initializer_list<Argument> arguments) {
  check_devices(op, arguments);
  check_dtypes(op, arguments);
  for (const Argument& argument : arguments) {
    STD_TORCH_CHECK(argument.tensor.dim() == 2 && argument.tensor.size(1) == 4, op, ": ",
                    argument.name, " must have shape (number, 4)");
  }
}

// Box i of the first set goes with box i of the second.
inline void check_pairs(const char* op, const Argument& pred, const Argument& target) {
  check_devices(op, {pred, target});
  check_dtypes(op, {pred, target});
  const int64_t dim = pred.tensor.dim();
  STD_TORCH_CHECK(dim >= 1 && pred.tensor.size(dim - 1) == 4, op, ": ", pred.name,
                  " must have shape (..., 4)");
  check_same_shape(op, target, pred);
}

inline Overlap parse_overlap(const char* op, const std::string& kind) {
  if (kind == "iou") return Overlap::kIou;
  if (kind == "giou") return Overlap::kGiou;
  STD_TORCH_CHECK(kind == "iof", op, ": unknown kind ", kind);
  return Overlap::kIof;
}

// Checks the arguments of box_iou_aligned. True for GIoU, false for IoU.
inline bool check_aligned(const char* op, const Tensor& pred, const Tensor& target,
                          const std::string& kind) {
  check_boxes(op, {{"pred", pred}, {"target", target}});
  check_pairs(op, {"pred", pred}, {"target", target});
  STD_TORCH_CHECK(kind == "iou" || kind == "giou", op, ": unknown kind ", kind);
  return kind == "giou";
}

inline void check_aligned_gradient(const char* op, const Tensor& grad, const Tensor& pred) {
  check_devices(op, {{"pred", pred}, {"grad", grad}});
  check_dtypes(op, {{"pred", pred}, {"grad", grad}});
  check_one_per_row(op, {"grad", grad}, {"pred", pred});
}

}  // namespace resobj
