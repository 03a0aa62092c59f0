// Box deltas (dx, dy, dw, dh) of Girshick et al. 2014, appendix C, in Detectron2's order of
// operations.
#pragma once

#include "resobj/bce_math.h"
#include "resobj/box_math.h"

namespace resobj {

// Plain data: kernels take it by value.
template <typename T>
struct DeltaWeights {
  T weights[4];
  T factors[4];  // 1 / weights
  T scale_clamp;
};

// x - x is NaN for NaN and infinity.
template <typename T>
RESOBJ_HD bool is_usable(const Box<T>& box) {
  const T zero = (box.x1 - box.x1) + (box.y1 - box.y1) + (box.x2 - box.x2) + (box.y2 - box.y2);
  return (zero == T(0)) & (box.x2 > box.x1) & (box.y2 > box.y1);
}

template <typename T>
RESOBJ_HD T clamped_exp(T x, T limit) {
  // Despite its name it is just as exact for the small positive numbers that the clamp leaves.
  return exp_nonpositive(x > limit ? limit : x);
}

// The anchor moved by its deltas, or the anchor itself if the result is not finite or has no area.
template <typename T>
RESOBJ_HD Box<T> refine(const T* anchor, const T* deltas, const DeltaWeights<T>& rule) {
  T corners[4];
  for (int d = 0; d < 2; ++d) {
    const T size = anchor[d + 2] - anchor[d];
    const T centre = deltas[d] * rule.factors[d] * size + (anchor[d] + T(0.5) * size);
    const T scale = clamped_exp(deltas[d + 2] * rule.factors[d + 2], rule.scale_clamp);
    const T half = T(0.5) * (scale * size);
    corners[d] = centre - half;
    corners[d + 2] = centre + half;
  }
  const Box<T> box{corners[0], corners[1], corners[2], corners[3]};
  const bool usable = is_usable(box);
  return Box<T>{usable ? box.x1 : anchor[0], usable ? box.y1 : anchor[1],
                usable ? box.x2 : anchor[2], usable ? box.y2 : anchor[3]};
}

// The deltas that move `box` to `target`; zeros unless both have an area.
template <typename T>
RESOBJ_HD void encode(const T* box, const T* target, const DeltaWeights<T>& rule, T* deltas) {
  for (int d = 0; d < 2; ++d) {
    const T size = box[d + 2] - box[d];
    const T target_size = target[d + 2] - target[d];
    const T centre = box[d] + T(0.5) * size;
    const T target_centre = target[d] + T(0.5) * target_size;
    deltas[d] = (target_centre - centre) / size * rule.weights[d];
    deltas[d + 2] = log(target_size / size) * rule.weights[d + 2];
  }
  const Box<T> a{box[0], box[1], box[2], box[3]};
  const Box<T> b{target[0], target[1], target[2], target[3]};
  if (!(is_usable(a) & is_usable(b))) {
    for (int d = 0; d < 4; ++d) deltas[d] = T(0);
  }
}

}  // namespace resobj
