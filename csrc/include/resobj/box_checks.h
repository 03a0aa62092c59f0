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

inline Overlap parse_overlap(const char* op, const std::string& kind) {
  if (kind == "iou") return Overlap::kIou;
  if (kind == "giou") return Overlap::kGiou;
  STD_TORCH_CHECK(kind == "iof", op, ": unknown kind ", kind);
  return Overlap::kIof;
}

}  // namespace resobj
