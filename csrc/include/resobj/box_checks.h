// A check shared by all operators on sets of boxes (host only).
#pragma once

#include <initializer_list>

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

}  // namespace resobj
