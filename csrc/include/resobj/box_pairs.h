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

// The fraction of the gradient of larger(a, b) that goes to a.
template <typename T>
RESOBJ_HD T share_of_larger(T a, T b) {
  return a > b ? T(1) : (a == b ? T(0.5) : T(0));
}

// `sorted` has one value for each of the sorted coordinates of `box`; this has them in its own
// order.
template <typename T>
RESOBJ_HD Box<T> in_order_of(const Box<T>& box, const Box<T>& sorted) {
  const bool swap_x = box.x1 > box.x2;
  const bool swap_y = box.y1 > box.y2;
  return Box<T>{swap_x ? sorted.x2 : sorted.x1, swap_y ? sorted.y2 : sorted.y1,
                swap_x ? sorted.x1 : sorted.x2, swap_y ? sorted.y1 : sorted.y2};
}

// Gradient with respect to `a`.
template <typename T>
RESOBJ_HD Box<T> gradient_of_first(const Box<T>& a, const Box<T>& b, const PairGeometry<T>& pair,
                                   const PairSlopes<T>& slopes) {
  const bool intersect = pair.intersection > T(0);
  const T by_width = intersect ? slopes.intersection * pair.height : T(0);
  const T by_height = intersect ? slopes.intersection * pair.width : T(0);
  const T by_area_width = slopes.area * (a.y2 - a.y1);
  const T by_area_height = slopes.area * (a.x2 - a.x1);
  const T by_hull_width = slopes.hull * pair.hull_height;
  const T by_hull_height = slopes.hull * pair.hull_width;
  // Of the two boxes' coordinates one bounds the intersection and the other the hull.
  const T x1 = share_of_larger(a.x1, b.x1);
  const T y1 = share_of_larger(a.y1, b.y1);
  const T x2 = share_of_larger(b.x2, a.x2);
  const T y2 = share_of_larger(b.y2, a.y2);
  return Box<T>{-(by_width * x1 + by_area_width + by_hull_width * (T(1) - x1)),
                -(by_height * y1 + by_area_height + by_hull_height * (T(1) - y1)),
                by_width * x2 + by_area_width + by_hull_width * (T(1) - x2),
                by_height * y2 + by_area_height + by_hull_height * (T(1) - y2)};
}

}  // namespace resobj
