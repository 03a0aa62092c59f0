// Shared by non-maximum suppression on the CPU and on CUDA (no torch).
#pragma once

#include <cmath>

#include "resobj/bce_math.h"
#include "resobj/box_math.h"

namespace resobj {

// The largest T that is at most `threshold`. For any T value, `value > round_down(threshold)`
// equals `value > threshold` in float64, which is how torchvision compares.
template <typename T>
T round_down(double threshold) {
  const T rounded = static_cast<T>(threshold);
  return static_cast<double>(rounded) > threshold ? std::nextafter(rounded, -T(INFINITY)) : rounded;
}

// The smallest T that is at least `threshold`, likewise for "value >= threshold".
template <typename T>
T round_up(double threshold) {
  return -round_down<T>(-threshold);
}

// The factor by which soft-NMS multiplies the score of a box with this IoU with the box taken.
template <typename T>
struct SoftRule {
  bool linear;
  T iou_threshold;  // linear: decay from this IoU on
  T sigma;

  RESOBJ_HD T weight(T iou) const {
    return linear ? (iou >= iou_threshold ? T(1) - iou : T(1))
                  : exp_nonpositive(-iou * iou / sigma);
  }
};

// Matrix NMS multiplies a score by the minimum of f(iou) / f(highest) over the better boxes of its
// class, where `highest` is the largest IoU of the better box with one still better. As f descends,
// that is `factor` of the largest `strength`, and 1 for a box without better ones.
template <typename T>
struct MatrixRule {
  bool linear;
  T sigma;

  RESOBJ_HD T strength(T iou, T highest) const {
    const T room = T(1) - highest;
    // A fully covered better box is certainly suppressed and decays nothing.
    const T share = room > T(0) ? (iou - highest) / room : T(0);
    return linear ? share : iou * iou - highest * highest;
  }

  RESOBJ_HD T factor(T greatest) const {
    return linear ? T(1) - greatest : exp_nonpositive(-greatest / sigma);
  }
};

// Boxes with a NaN coordinate, without area or with swapped corners overlap nothing, so with a
// threshold of 0 or more they neither suppress nor are suppressed.
template <typename T>
RESOBJ_HD bool suppresses(const Box<T>& kept, T kept_area, const Box<T>& box, T box_area,
                          T threshold) {
  return overlap<Overlap::kIou>(kept, kept_area, box, box_area) > threshold;
}

// False only if `suppresses` is false, without its division. Rounding is monotonic: if the rounded
// quotient is above the threshold, so is the true quotient; then the intersection is above the true
// product and not below the rounded one.
template <typename T>
RESOBJ_HD bool may_suppress(const Box<T>& kept, T kept_area, const Box<T>& box, T box_area,
                            T threshold) {
  const T width = larger(smaller(kept.x2, box.x2) - larger(kept.x1, box.x1), T(0));
  const T height = larger(smaller(kept.y2, box.y2) - larger(kept.y1, box.y1), T(0));
  const T intersection = width * height;
  const T union_area = kept_area + box_area - intersection;
  return (intersection > T(0)) & (intersection >= threshold * union_area);
}

}  // namespace resobj
