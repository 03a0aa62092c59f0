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

// Where pairwise_box_iou is to write.
inline void check_overlap_out(const Tensor& boxes1, const Tensor& boxes2, const Tensor& out) {
  const char* op = "pairwise_box_iou";
  check_devices(op, {{"boxes1", boxes1}, {"out", out}});
  check_dtypes(op, {{"boxes1", boxes1}, {"out", out}});
  const bool fits =
      out.dim() == 2 && out.size(0) == boxes1.size(0) && out.size(1) == boxes2.size(0);
  STD_TORCH_CHECK(fits && out.is_contiguous(), op,
                  ": out must be contiguous, with a row for each box of boxes1 and a column for "
                  "each of boxes2");
}

inline Overlap parse_overlap(const char* op, const std::string& kind) {
  if (kind == "iou") return Overlap::kIou;
  if (kind == "giou") return Overlap::kGiou;
  STD_TORCH_CHECK(kind == "iof", op, ": unknown kind ", kind);
  return Overlap::kIof;
}

constexpr const char* kAlignedOp = "box_iou_aligned";

// The arguments of box_iou_aligned, checked and contiguous.
struct AlignedArguments {
  Tensor pred;
  Tensor target;
  bool giou;  // else IoU

  AlignedArguments(const Tensor& p, const Tensor& t, const std::string& kind) {
    check_boxes(kAlignedOp, {{"pred", p}, {"target", t}});
    check_same_shape(kAlignedOp, {"target", t}, {"pred", p});
    STD_TORCH_CHECK(kind == "iou" || kind == "giou", kAlignedOp, ": unknown kind ", kind);
    pred = as_contiguous(p);
    target = as_contiguous(t);
    giou = kind == "giou";
  }

  int64_t count() const { return pred.size(0); }

  // The gradient that comes in, checked and contiguous.
  Tensor gradient(const Tensor& grad) const {
    check_devices(kAlignedOp, {{"pred", pred}, {"grad", grad}});
    check_dtypes(kAlignedOp, {{"pred", pred}, {"grad", grad}});
    check_one_per_row(kAlignedOp, {"grad", grad}, {"pred", pred});
    return as_contiguous(grad);
  }
};

}  // namespace resobj
