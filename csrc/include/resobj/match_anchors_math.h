// The label of an anchor, from its best IoU. Plain data: kernels take it by value.
#pragma once

#include <cstdint>

#include "resobj/macros.h"

namespace resobj {

constexpr int kMaxThresholds = 16;

// labels[i + 1] from thresholds[i] on, labels[0] below the first threshold.
template <typename T>
struct MatchRule {
  int num_thresholds;
  T thresholds[kMaxThresholds];  // ascending
  int8_t labels[kMaxThresholds + 1];

  RESOBJ_HD int8_t label(T iou) const {
    int8_t result = labels[0];
    for (int i = 0; i < num_thresholds; ++i) result = iou >= thresholds[i] ? labels[i + 1] : result;
    return result;
  }
};

}  // namespace resobj
