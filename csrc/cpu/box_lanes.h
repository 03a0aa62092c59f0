// Four boxes at a time, with one vector per coordinate.
//
// Compilers turn an array of boxes into arrays of coordinates, and back, with many more shuffles
// than these. The vectors are GCC's vector types, which clang has too. They have 16 bytes, which
// every processor has: wider ones would be split before they are inlined into code for wider
// vectors.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "resobj/box_math.h"

#if defined(__clang__)
#define RESOBJ_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define RESOBJ_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Index{__VA_ARGS__})
#endif

namespace resobj {

constexpr int kBoxLanes = 4;

template <typename T>
struct BoxLanes {
  using Element = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  typedef T Vector __attribute__((vector_size(kBoxLanes * sizeof(T))));
  typedef Element Index __attribute__((vector_size(kBoxLanes * sizeof(T))));

  Vector x1, y1, x2, y2;

  // From boxes one after the other.
  void load(const T* boxes) {
    Vector a, b, c, d;
    std::memcpy(&a, boxes, sizeof(a));
    std::memcpy(&b, boxes + 4, sizeof(b));
    std::memcpy(&c, boxes + 8, sizeof(c));
    std::memcpy(&d, boxes + 12, sizeof(d));
    transpose(a, b, c, d, x1, y1, x2, y2);
  }

  void store(T* boxes) const {
    Vector a, b, c, d;
    transpose(x1, y1, x2, y2, a, b, c, d);
    std::memcpy(boxes, &a, sizeof(a));
    std::memcpy(boxes + 4, &b, sizeof(b));
    std::memcpy(boxes + 8, &c, sizeof(c));
    std::memcpy(boxes + 12, &d, sizeof(d));
  }

 private:
  static void transpose(const Vector& a, const Vector& b, const Vector& c, const Vector& d,
                        Vector& first, Vector& second, Vector& third, Vector& fourth) {
    const Vector ab_low = RESOBJ_SHUFFLE(a, b, 0, 4, 1, 5);
    const Vector ab_high = RESOBJ_SHUFFLE(a, b, 2, 6, 3, 7);
    const Vector cd_low = RESOBJ_SHUFFLE(c, d, 0, 4, 1, 5);
    const Vector cd_high = RESOBJ_SHUFFLE(c, d, 2, 6, 3, 7);
    first = RESOBJ_SHUFFLE(ab_low, cd_low, 0, 1, 4, 5);
    second = RESOBJ_SHUFFLE(ab_low, cd_low, 2, 3, 6, 7);
    third = RESOBJ_SHUFFLE(ab_high, cd_high, 0, 1, 4, 5);
    fourth = RESOBJ_SHUFFLE(ab_high, cd_high, 2, 3, 6, 7);
  }
};

}  // namespace resobj
