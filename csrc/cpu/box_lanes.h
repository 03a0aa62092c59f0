// Four boxes at a time, with one vector per coordinate, and blocks of them.
//
// Compilers turn an array of boxes into arrays of coordinates, and back, with many more shuffles
// than these. The vectors are GCC's vector types, which clang has too. In float32 they have 16
// bytes, which every processor has: wider ones would be split before they are inlined into code for
// wider vectors.
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

// A few boxes with one array per coordinate, as loops over boxes vectorise best. Blocks of four
// times as many took longer.
template <typename T>
struct BoxBlock {
  static constexpr int kSize = 64;
  alignas(64) T x1[kSize], y1[kSize], x2[kSize], y2[kSize];

  Box<T> get(int64_t j) const { return Box<T>{x1[j], y1[j], x2[j], y2[j]}; }

  void set(int64_t j, const Box<T>& box) {
    x1[j] = box.x1;
    y1[j] = box.y1;
    x2[j] = box.x2;
    y2[j] = box.y2;
  }

  // From `count` boxes one after the other.
  void load(const T* boxes, int64_t count) {
    int64_t j = 0;
    for (; j + kBoxLanes <= count; j += kBoxLanes) {
      BoxLanes<T> lanes;
      lanes.load(boxes + 4 * j);
      std::memcpy(x1 + j, &lanes.x1, sizeof(lanes.x1));
      std::memcpy(y1 + j, &lanes.y1, sizeof(lanes.y1));
      std::memcpy(x2 + j, &lanes.x2, sizeof(lanes.x2));
      std::memcpy(y2 + j, &lanes.y2, sizeof(lanes.y2));
    }
    for (; j < count; ++j) set(j, get_box(boxes, j));
  }

  void store(T* boxes, int64_t count) const {
    int64_t j = 0;
    for (; j + kBoxLanes <= count; j += kBoxLanes) {
      BoxLanes<T> lanes;
      std::memcpy(&lanes.x1, x1 + j, sizeof(lanes.x1));
      std::memcpy(&lanes.y1, y1 + j, sizeof(lanes.y1));
      std::memcpy(&lanes.x2, x2 + j, sizeof(lanes.x2));
      std::memcpy(&lanes.y2, y2 + j, sizeof(lanes.y2));
      lanes.store(boxes + 4 * j);
    }
    for (; j < count; ++j) set_box(boxes, j, get(j));
  }
};

}  // namespace resobj
