// Geometry of two boxes, and gradients through it, for box_iou_aligned and giou_loss.
//
// Where a coordinate of both boxes is the same, each gets half of the gradient, as with
// torch.maximum; so at the best overlap, of two identical boxes, the gradient is 0.
#pragma once

#include "resobj/bce_math.h"
#include "resobj/box_math.h"

namespace resobj {

// The quantities that overlaps are computed from; the union is area + area - intersection.
template <typename T>
struct PairGeometry {
  T width, height, intersection;  // 0 unless the boxes intersect
  T union_area;
  T hull_width, hull_height, hull;
};

template <typename T>
RESOBJ_HD PairGeometry<T> pair_geometry(const Box<T>& a, const Box<T>& b) {
  const T zero = T(0);
  PairGeometry<T> pair;
  pair.width = larger(smaller(a.x2, b.x2) - larger(a.x1, b.x1), zero);
  pair.height = larger(smaller(a.y2, b.y2) - larger(a.y1, b.y1), zero);
  pair.intersection = pair.width * pair.height;
  pair.union_area = area(a) + area(b) - pair.intersection;
  pair.hull_width = larger(larger(a.x2, b.x2) - smaller(a.x1, b.x1), zero);
  pair.hull_height = larger(larger(a.y2, b.y2) - smaller(a.y1, b.y1), zero);
  pair.hull = pair.hull_width * pair.hull_height;
  return pair;
}

// Partial derivatives of an overlap: by the intersection (which also changes the union), by the
// area of either box, and by the hull.
template <typename T>
struct PairSlopes {
  T intersection, area, hull;
};

// `sorted` has one value for each of the sorted coordinates of `box`; this has them in its own
// order.
template <typename T>
RESOBJ_HD Box<T> in_order_of(const Box<T>& box, const Box<T>& sorted) {
  const bool swap_x = box.x1 > box.x2;
  const bool swap_y = box.y1 > box.y2;
  return Box<T>{swap_x ? sorted.x2 : sorted.x1, swap_y ? sorted.y2 : sorted.y1,
                swap_x ? sorted.x1 : sorted.x2, swap_y ? sorted.y1 : sorted.y2};
}

// The gradient of a coordinate, which bounds either the intersection or the hull; of both boxes'
// coordinates if they are the same.
template <typename T>
RESOBJ_HD T of_bounded(bool intersection, bool same, T by_intersection, T by_hull, T by_half) {
  return intersection ? by_intersection : (same ? by_half : by_hull);
}

// Gradient with respect to `a`.
template <typename T>
RESOBJ_HD Box<T> gradient_of_first(const Box<T>& a, const Box<T>& b, const PairGeometry<T>& pair,
                                   const PairSlopes<T>& slopes) {
  const bool intersect = pair.intersection > T(0);
  const T by_hull_width = slopes.hull * pair.hull_height;
  const T by_hull_height = slopes.hull * pair.hull_width;
  // x - x is 0 or NaN: of a pair that is not finite, a coordinate that bounds the intersection has
  // no finite gradient either.
  const T area_width = slopes.area * (a.y2 - a.y1) + (by_hull_width - by_hull_width);
  const T area_height = slopes.area * (a.x2 - a.x1) + (by_hull_height - by_hull_height);
  // By the width and the height of the intersection or of the hull, and by those of `a`.
  const T width = (intersect ? slopes.intersection * pair.height : T(0)) + area_width;
  const T height = (intersect ? slopes.intersection * pair.width : T(0)) + area_height;
  const T hull_width = by_hull_width + area_width;
  const T hull_height = by_hull_height + area_height;
  const T half_width = T(0.5) * (width + hull_width);
  const T half_height = T(0.5) * (height + hull_height);
  return Box<T>{-of_bounded(a.x1 > b.x1, a.x1 == b.x1, width, hull_width, half_width),
                -of_bounded(a.y1 > b.y1, a.y1 == b.y1, height, hull_height, half_height),
                of_bounded(a.x2 < b.x2, a.x2 == b.x2, width, hull_width, half_width),
                of_bounded(a.y2 < b.y2, a.y2 == b.y2, height, hull_height, half_height)};
}

}  // namespace resobj
