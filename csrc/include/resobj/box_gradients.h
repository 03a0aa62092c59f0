// GIoU loss of two boxes, and gradients of the overlaps of box_math.h with respect to both boxes.
//
// Where a coordinate of both boxes is the same, each gets half of the gradient, as from
// torch.maximum; so the gradient at the best overlap, of two identical boxes, is 0.
#pragma once

#include "resobj/bce_math.h"
#include "resobj/box_math.h"

namespace resobj {

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

// What the overlap of two boxes is made of; the union is area + area - intersection.
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

// Derivatives of some value by the intersection (the union moving along), by the area of either
// box, and by the hull.
template <typename T>
struct PairSlopes {
  T intersection, area, hull;
};

// How much of the gradient of larger(a, b) is a's.
template <typename T>
RESOBJ_HD T share_of_larger(T a, T b) {
  return a > b ? T(1) : (a == b ? T(0.5) : T(0));
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
  // The coordinate that does not bound the intersection bounds the hull.
  const T x1 = share_of_larger(a.x1, b.x1);
  const T y1 = share_of_larger(a.y1, b.y1);
  const T x2 = share_of_larger(b.x2, a.x2);
  const T y2 = share_of_larger(b.y2, a.y2);
  return Box<T>{-(by_width * x1 + by_area_width + by_hull_width * (T(1) - x1)),
                -(by_height * y1 + by_area_height + by_hull_height * (T(1) - y1)),
                by_width * x2 + by_area_width + by_hull_width * (T(1) - x2),
                by_height * y2 + by_area_height + by_hull_height * (T(1) - y2)};
}

// Slopes of overlap<kind>, for IoU and GIoU. A part that overlap() replaces by a constant has none.
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

template <typename T>
RESOBJ_HD T finite_or_zero(T value) {
  return value - value == T(0) ? value : T(0);
}

// Gradient of overlap<kind>(a, b) with respect to a, times `scale`. Coordinates that are not finite
// or too large to be multiplied give 0.
template <Overlap kind, typename T>
RESOBJ_HD Box<T> overlap_gradient(const Box<T>& a, const Box<T>& b, T scale) {
  const PairGeometry<T> pair = pair_geometry(a, b);
  const Box<T> gradient = gradient_of_first(a, b, pair, overlap_slopes<kind>(pair));
  return Box<T>{scale * finite_or_zero(gradient.x1), scale * finite_or_zero(gradient.y1),
                scale * finite_or_zero(gradient.x2), scale * finite_or_zero(gradient.y2)};
}

// Corners in order; equal coordinates stay where they are.
template <typename T>
RESOBJ_HD Box<T> sorted_corners(const Box<T>& box) {
  return Box<T>{box.x1 > box.x2 ? box.x2 : box.x1, box.y1 > box.y2 ? box.y2 : box.y1,
                box.x1 > box.x2 ? box.x1 : box.x2, box.y1 > box.y2 ? box.y1 : box.y2};
}

// From `limit` on the coordinates are multiplied by `factor`, a power of two, so that no area
// overflows; GIoU does not change.
template <typename T>
struct HugeBoxes;
template <>
struct HugeBoxes<float> {
  static constexpr float limit = 0x1p60f, factor = 0x1p-67f, epsilon = 1e-19f;
};
template <>
struct HugeBoxes<double> {
  static constexpr double limit = 0x1p500, factor = 0x1p-524, epsilon = 1e-100;
};

// What the kernels of the GIoU loss read, all contiguous; `mask` may be null.
template <typename T>
struct GiouInputs {
  const T* pred;     // (count, 4)
  const T* target;   // (count, 4)
  const bool* mask;  // (count)
};

// The two boxes as the GIoU loss wants them, and what goes with them.
template <typename T>
struct GiouPair {
  Box<T> pred, target;
  T scale;    // of the coordinates
  T epsilon;  // added to the union and to the hull
};

template <typename T>
RESOBJ_HD T largest_coordinate(const Box<T>& box) {
  return larger(larger(magnitude(box.x1), magnitude(box.y1)),
                larger(magnitude(box.x2), magnitude(box.y2)));
}

template <typename T>
RESOBJ_HD GiouPair<T> giou_pair(const Box<T>& pred, const Box<T>& target) {
  constexpr T limit = HugeBoxes<T>::limit;
  constexpr T factor = HugeBoxes<T>::factor;
  constexpr T epsilon = HugeBoxes<T>::epsilon;
  const bool huge = larger(largest_coordinate(pred), largest_coordinate(target)) > limit;
  const T scale = huge ? factor : T(1);
  const Box<T> p = sorted_corners(pred);
  const Box<T> t = sorted_corners(target);
  return GiouPair<T>{{p.x1 * scale, p.y1 * scale, p.x2 * scale, p.y2 * scale},
                     {t.x1 * scale, t.y1 * scale, t.x2 * scale, t.y2 * scale},
                     scale,
                     huge ? epsilon : T(1e-7)};
}

// 1 - GIoU.
template <typename T>
RESOBJ_HD T giou_loss(const Box<T>& pred, const Box<T>& target) {
  const GiouPair<T> boxes = giou_pair(pred, target);
  const PairGeometry<T> pair = pair_geometry(boxes.pred, boxes.target);
  const T iou = pair.intersection / (pair.union_area + boxes.epsilon);
  return T(1) - (iou - (pair.hull - pair.union_area) / (pair.hull + boxes.epsilon));
}

// Gradient of giou_loss with respect to the predicted box.
template <typename T>
RESOBJ_HD Box<T> giou_loss_gradient(const Box<T>& pred, const Box<T>& target, T scale) {
  const GiouPair<T> boxes = giou_pair(pred, target);
  const PairGeometry<T> pair = pair_geometry(boxes.pred, boxes.target);
  const T inverse_union = T(1) / (pair.union_area + boxes.epsilon);
  const T inverse_hull = T(1) / (pair.hull + boxes.epsilon);
  const T by_union = pair.intersection * inverse_union * inverse_union - inverse_hull;
  const T outside = (pair.hull - pair.union_area) * inverse_hull;
  const PairSlopes<T> slopes{-inverse_union - by_union, by_union,
                             inverse_hull - outside * inverse_hull};
  const Box<T> g = gradient_of_first(boxes.pred, boxes.target, pair, slopes);
  const T factor = scale * boxes.scale;
  const bool swap_x = pred.x1 > pred.x2;
  const bool swap_y = pred.y1 > pred.y2;
  return Box<T>{factor * (swap_x ? g.x2 : g.x1), factor * (swap_y ? g.y2 : g.y1),
                factor * (swap_x ? g.x1 : g.x2), factor * (swap_y ? g.y1 : g.y2)};
}

}  // namespace resobj
