// Scalar arithmetic on XYXY boxes, shared by the CPU and CUDA kernels so that their results are
// bit-identical. Compile without contraction to fused multiply-add (-ffp-contract=off,
// --fmad=false): the order of operations is Detectron2's, and ties between anchors depend on it.
#pragma once

#include "resobj/macros.h"

namespace resobj {

enum class Overlap { kIou, kGiou, kIof };

template <typename T>
struct Box {
  T x1, y1, x2, y2;
};

// Box `index` of a contiguous (..., 4) array.
template <typename T>
RESOBJ_HD Box<T> get_box(const T* boxes, int64_t index) {
  const T* box = boxes + 4 * index;
  return Box<T>{box[0], box[1], box[2], box[3]};
}

template <typename T>
RESOBJ_HD void set_box(T* boxes, int64_t index, const Box<T>& value) {
  T* box = boxes + 4 * index;
  box[0] = value.x1;
  box[1] = value.y1;
  box[2] = value.x2;
  box[3] = value.y2;
}

template <typename T>
RESOBJ_HD T smaller(T a, T b) {
  return a < b ? a : b;
}

template <typename T>
RESOBJ_HD T larger(T a, T b) {
  return a > b ? a : b;
}

// Sorts the corners; equal coordinates keep their order.
template <typename T>
RESOBJ_HD Box<T> sorted_corners(const Box<T>& box) {
  return Box<T>{box.x1 > box.x2 ? box.x2 : box.x1, box.y1 > box.y2 ? box.y2 : box.y1,
                box.x1 > box.x2 ? box.x1 : box.x2, box.y1 > box.y2 ? box.y1 : box.y2};
}

// GIoU is that of the boxes with sorted corners, so that it stays in [-1, 1].
template <Overlap kind, typename T>
RESOBJ_HD Box<T> corners_for(const Box<T>& box) {
  return kind == Overlap::kGiou ? sorted_corners(box) : box;
}

template <typename T>
RESOBJ_HD T area(const Box<T>& box) {
  return (box.x2 - box.x1) * (box.y2 - box.y1);
}

// Overlap of a and b, which come from corners_for<kind>; a box with swapped corners overlaps
// nothing. IoF divides by the area of b. A pair with a NaN coordinate gets 0 (GIoU -1): `smaller`
// and `larger` may drop the NaN, but it remains in the areas and thus in the union.
template <Overlap kind, typename T>
RESOBJ_HD T overlap(const Box<T>& a, T area_a, const Box<T>& b, T area_b) {
  const T zero = T(0);
  const T width = larger(smaller(a.x2, b.x2) - larger(a.x1, b.x1), zero);
  const T height = larger(smaller(a.y2, b.y2) - larger(a.y1, b.y1), zero);
  const T intersection = width * height;
  const T union_area = area_a + area_b - intersection;
  // Divide first and select afterwards, with & instead of &&: no branch, so the loop vectorises.
  const T ratio = intersection / (kind == Overlap::kIof ? area_b : union_area);
  const T iou = ((intersection > zero) & (union_area > zero)) ? ratio : zero;
  if (kind != Overlap::kGiou) return iou;
  const T hull_width = larger(larger(a.x2, b.x2) - smaller(a.x1, b.x1), zero);
  const T hull_height = larger(larger(a.y2, b.y2) - smaller(a.y1, b.y1), zero);
  const T hull = hull_width * hull_height;
  const T formula = iou - (hull - union_area) / hull;
  const T giou = ((hull <= zero) & (union_area == union_area)) ? iou : formula;
  return giou == giou ? giou : T(-1);
}

}  // namespace resobj
