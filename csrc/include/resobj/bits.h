// Reinterprets the bits of a value as another type.
#pragma once

#include <cstring>

#include "resobj/macros.h"

namespace resobj {

template <typename To, typename From>
RESOBJ_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace resobj
