// The overlaps of box_math.h, and their gradients with respect to both boxes.
#pragma once

#include "resobj/box_pairs.h"

namespace resobj {

// Slopes of overlap<kind> for IoU and GIoU; 0 where overlap() is replaced by a constant.
template <Overlap kind, typename T>
RESOBJ_HD PairSlopes<T> overlap_slopes(const PairGeometry<T>& pair) {
  const T zero = T(0);
  const bool has_iou = (pair.intersection > zero) & (pair.union_area > zero);
  const T inverse_union = has_iou ? T(1) / pair.union_area : zero;
  const T iou = has_iou ? pair.intersection / pair.union_area : zero;
  PairSlopes<T> slopes{zero, -iou * inverse_union, zero};
  if (kind == Overlap::kGiou) {
    const bool has_hull = pair.hull > zero;
    const T inverse_hull = has_hull ? T(1) / pair.hull : zero;
    slopes.area += inverse_hull;
    slopes.hull = has_hull ? -(pair.union_area / pair.hull) * inverse_hull : zero;
  }
  slopes.intersection = inverse_union - slopes.area;
  return slopes;
}

// Overlap of boxes whose corners are as corners_for<kind> leaves them.
template <Overlap kind, typename T>
RESOBJ_HD T overlap_as_is(const Box<T>& a, const Box<T>& b) {
  return overlap<kind>(a, area(a), b, area(b));
}

template <Overlap kind, typename T>
RESOBJ_HD T aligned_overlap(const Box<T>& a, const Box<T>& b) {
  return overlap_as_is<kind>(corners_for<kind>(a), corners_for<kind>(b));
}

template <typename T>
RESOBJ_HD T finite_or_zero(T value) {
  return value - value == T(0) ? value : T(0);
}

// Gradient of overlap_as_is<kind>(a, b) with respect to a, times `scale`; 0 if coordinates are not
// finite or too large to be multiplied.
template <Overlap kind, typename T>
RESOBJ_HD Box<T> gradient_as_is(const Box<T>& a, const Box<T>& b, T scale) {
  const PairGeometry<T> pair = pair_geometry(a, b);
  const Box<T> gradient = gradient_of_first(a, b, pair, overlap_slopes<kind>(pair));
  return Box<T>{scale * finite_or_zero(gradient.x1), scale * finite_or_zero(gradient.y1),
                scale * finite_or_zero(gradient.x2), scale * finite_or_zero(gradient.y2)};
}

// The same of aligned_overlap.
template <Overlap kind, typename T>
RESOBJ_HD Box<T> overlap_gradient(const Box<T>& a, const Box<T>& b, T scale) {
  const Box<T> sorted = gradient_as_is<kind>(corners_for<kind>(a), corners_for<kind>(b), scale);
  return kind == Overlap::kGiou ? in_order_of(a, sorted) : sorted;
}

}  // namespace resobj
