// The GIoU loss of two boxes and its gradient.
#pragma once

#include "resobj/box_pairs.h"

namespace resobj {

// Coordinates of `limit` or more are multiplied by `factor`, a power of two, so that no area
// overflows; this does not change GIoU.
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

// The inputs of the GIoU loss's kernels, all contiguous; `mask` may be null.
template <typename T>
struct GiouInputs {
  const T* pred;     // (count, 4)
  const T* target;   // (count, 4)
  const bool* mask;  // (count)
};

// The two boxes, sorted and scaled, with the constants of their loss.
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

// What the loss and its gradient have in common: IoU, the part of the hull outside the union, and
// the inverse areas.
template <typename T>
struct GiouParts {
  T inverse_union, inverse_hull;
  T iou, outside;
};

template <typename T>
RESOBJ_HD GiouParts<T> giou_parts(const PairGeometry<T>& pair, T epsilon) {
  const T inverse_hull = T(1) / (pair.hull + epsilon);
  return GiouParts<T>{T(1) / (pair.union_area + epsilon), inverse_hull,
                      // Divided once more, so that identical boxes have a loss of exactly 0.
                      pair.intersection / (pair.union_area + epsilon),
                      (pair.hull - pair.union_area) * inverse_hull};
}

// 1 - GIoU.
template <typename T>
RESOBJ_HD T giou_loss(const Box<T>& pred, const Box<T>& target) {
  const GiouPair<T> boxes = giou_pair(pred, target);
  const PairGeometry<T> pair = pair_geometry(boxes.pred, boxes.target);
  const GiouParts<T> parts = giou_parts(pair, boxes.epsilon);
  return T(1) - (parts.iou - parts.outside);
}

// Gradient of giou_loss with respect to the predicted box.
template <typename T>
RESOBJ_HD Box<T> giou_loss_gradient(const Box<T>& pred, const Box<T>& target, T scale) {
  const GiouPair<T> boxes = giou_pair(pred, target);
  const PairGeometry<T> pair = pair_geometry(boxes.pred, boxes.target);
  const GiouParts<T> parts = giou_parts(pair, boxes.epsilon);
  const T by_union = parts.iou * parts.inverse_union - parts.inverse_hull;
  const PairSlopes<T> slopes{-parts.inverse_union - by_union, by_union,
                             parts.inverse_hull - parts.outside * parts.inverse_hull};
  const Box<T> g = gradient_of_first(boxes.pred, boxes.target, pair, slopes);
  const T factor = scale * boxes.scale;
  const Box<T> own = in_order_of(pred, g);
  return Box<T>{factor * own.x1, factor * own.y1, factor * own.x2, factor * own.y2};
}

}  // namespace resobj
