// Options and inputs of residual_objectness_bce, and how its anchors are cut into chunks. Every
// chunk lies in one image and one group, so it has one threshold per step. The cut depends only on
// the sizes, never on the number of threads, which makes the sums reproducible.
#pragma once

#include "resobj/macros.h"

namespace resobj {

constexpr int kMaxSteps = 8;
constexpr int kMaxLevels = 32;

enum class Detach { kAll, kObjectness, kNone };
enum class Scope { kImage, kBatch, kLevel, kNone };

struct Chunk {
  int64_t group;  // index of its threshold
  int64_t begin;  // first and one-past-last position in the flattened (N, R) arrays
  int64_t end;
};

// Plain data: kernels take it by value.
struct ResidualLayout {
  int64_t num_images;
  int64_t num_anchors;  // R
  int64_t chunk_size;
  Scope scope;
  int num_levels;  // 1 unless the scope is kLevel
  int64_t level_begin[kMaxLevels + 1];
  int64_t chunk_begin[kMaxLevels + 1];  // of each level, within one image

  RESOBJ_HD int64_t num_groups() const {
    if (scope == Scope::kImage) return num_images;
    return scope == Scope::kLevel ? num_levels : 1;
  }

  RESOBJ_HD int64_t num_chunks() const { return num_images * chunk_begin[num_levels]; }

  RESOBJ_HD Chunk chunk(int64_t index) const {
    const int64_t chunks_per_image = chunk_begin[num_levels];
    const int64_t image = index / chunks_per_image;
    const int64_t in_image = index - image * chunks_per_image;
    int level = 0;
    while (in_image >= chunk_begin[level + 1]) ++level;
    const int64_t begin = level_begin[level] + (in_image - chunk_begin[level]) * chunk_size;
    int64_t end = begin + chunk_size;
    if (end > level_begin[level + 1]) end = level_begin[level + 1];
    const int64_t group = scope == Scope::kImage ? image : (scope == Scope::kLevel ? level : 0);
    return Chunk{group, image * num_anchors + begin, image * num_anchors + end};
  }
};

// The inputs of the kernels, all contiguous.
template <typename T>
struct ResidualInputs {
  const T* logits;
  const T* residuals;
  const int8_t* labels;
  int steps;
  Detach detach;
  bool keep;  // unselected="keep"
  ResidualLayout layout;

  RESOBJ_HD int64_t step_stride() const { return layout.num_images * layout.num_anchors; }
};

// The sums over the anchors of one step. The last two are for background and foreground.
enum StepSum { kLoss, kSelected, kScores, kNumbers = kScores + 2, kStepSums = kNumbers + 2 };

// The smaller of two, NaN if either is NaN.
template <typename T>
RESOBJ_HD T nan_min(T a, T b) {
  return (b < a || b != b) ? b : a;
}

// Whether an anchor that is not ignored is selected. Written as "not below", so that NaN is
// selected and shows up in the loss; a threshold of +inf (no foreground, or all of it at +inf)
// selects nothing.
template <typename T>
RESOBJ_HD bool passes(T logit, T threshold, T infinity) {
  return !(logit < threshold) & (threshold != infinity);
}

// The threshold of a step, from that of the step before (-inf for the first) and `minimum`, the
// smallest sum of a foreground logit and its residuals so far. It is `minimum`, except that with
// `keep` it stays at +inf: nothing is selected, so no residual is added to that foreground.
template <typename T>
RESOBJ_HD T next_threshold(T before, T minimum, bool keep, T infinity) {
  return (keep & (before == infinity)) ? infinity : minimum;
}

}  // namespace resobj
