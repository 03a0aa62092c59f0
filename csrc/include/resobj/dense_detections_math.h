// Scores and boxes of a dense head's anchors, read from its maps: shared by dense_detections on the
// CPU and on CUDA (no torch).
#pragma once

#include <cmath>

#include "resobj/box_math.h"

namespace resobj {

constexpr int kMaxDenseLevels = 12;
constexpr int kMaxDenseFactors = 4;  // including the class

// A map (N, C, H, W) whose cells, in row-major order, are evenly spaced in memory: contiguous,
// channels-last, or a view of predictions flattened to (N, anchors, channels).
template <typename T>
struct MapView {
  const T* data;
  int64_t image, channel, cell;  // strides

  RESOBJ_HD T at(int64_t n, int64_t c, int64_t i) const {
    return data[n * image + c * channel + i * cell];
  }
};

// Whether the channels of an image are consecutive planes.
template <typename T>
RESOBJ_HD bool has_planes(const MapView<T>& map, int64_t channels, int64_t cells) {
  return (cells <= 1 || map.cell == 1) && (channels <= 1 || map.channel == cells);
}

// Whether the channels of each cell are adjacent, cell after cell (channels-last).
template <typename T>
RESOBJ_HD bool has_rows(const MapView<T>& map, int64_t channels, int64_t cells) {
  return (channels <= 1 || map.channel == 1) && (cells <= 1 || map.cell == channels);
}

// Row r of a level is anchor r % num_anchors of cell r / num_anchors.
template <typename T>
struct DenseLevel {
  MapView<T> cls;     // num_anchors * K channels
  MapView<T> deltas;  // num_anchors * 4 channels; no data if the anchors are the boxes
  MapView<T> factors[kMaxDenseFactors - 1];  // num_anchors channels each
  const T* anchors;                          // XYXY
  int64_t anchor_stride;  // anchors between those of one image and the next, 0 if shared
  int64_t num_anchors;    // per cell
  int64_t num_cells;
  int64_t first_row;  // row of the first anchor among those of all levels

  RESOBJ_HD int64_t num_rows() const { return num_cells * num_anchors; }
};

template <typename T>
struct ScoreRule {
  int64_t num_classes;
  int num_factors;  // including the class
  T exponents[kMaxDenseFactors];
  T floors[kMaxDenseFactors];
  T score_thresh;
};

template <typename T>
struct DeltaRule {
  T factors[4];  // of the deltas: 1 / weights
  T scale_clamp;
};

template <typename T>
RESOBJ_HD T sigmoid(T logit) {
  return T(1) / (T(1) + std::exp(-logit));
}

// The probabilities of class k at a row: the class, then the factors.
template <typename T>
RESOBJ_HD void load_probabilities(const DenseLevel<T>& level, const ScoreRule<T>& rule,
                                  int64_t image, int64_t row, int64_t k, T* probabilities) {
  const int64_t cell = row / level.num_anchors;
  const int64_t anchor = row % level.num_anchors;
  probabilities[0] = sigmoid(level.cls.at(image, anchor * rule.num_classes + k, cell));
  for (int f = 1; f < rule.num_factors; ++f) {
    probabilities[f] = sigmoid(level.factors[f - 1].at(image, anchor, cell));
  }
}

// NaN if a probability is NaN, 0 if one is below its floor.
template <typename T>
RESOBJ_HD T fused_score(const ScoreRule<T>& rule, const T* probabilities) {
  T score = T(1);
  T unknown = T(0);
  bool above = true;
  for (int f = 0; f < rule.num_factors; ++f) {
    const T p = probabilities[f];
    const T exponent = rule.exponents[f];
    score *= exponent == T(1) ? p : std::pow(p, exponent);
    above &= p >= rule.floors[f];
    unknown += p - p;  // 0 or NaN: pow(NaN, 0) is 1
  }
  return (above ? score : T(0)) + unknown;
}

// The order of operations is Detectron2's (Box2BoxTransform.apply_deltas).
template <typename T>
RESOBJ_HD Box<T> decode_box(const DenseLevel<T>& level, const DeltaRule<T>& rule, int64_t image,
                            int64_t row) {
  const T* anchor = level.anchors + 4 * (image * level.anchor_stride + row);
  if (level.deltas.data == nullptr) return Box<T>{anchor[0], anchor[1], anchor[2], anchor[3]};
  const int64_t cell = row / level.num_anchors;
  const int64_t channel = 4 * (row % level.num_anchors);
  T corners[4];
  for (int d = 0; d < 2; ++d) {
    const T size = anchor[d + 2] - anchor[d];
    const T middle = anchor[d] + T(0.5) * size;
    const T shift = level.deltas.at(image, channel + d, cell) * rule.factors[d];
    const T scale = level.deltas.at(image, channel + 2 + d, cell) * rule.factors[d + 2];
    const T centre = shift * size + middle;
    const T half = T(0.5) * (std::exp(scale > rule.scale_clamp ? rule.scale_clamp : scale) * size);
    corners[d] = centre - half;
    corners[d + 2] = centre + half;
  }
  return Box<T>{corners[0], corners[1], corners[2], corners[3]};
}

// x - x is NaN for NaN and infinity.
template <typename T>
RESOBJ_HD bool is_finite(const Box<T>& box) {
  return (box.x1 - box.x1) + (box.y1 - box.y1) + (box.x2 - box.x2) + (box.y2 - box.y2) == T(0);
}

template <typename T>
RESOBJ_HD Box<T> clip(const Box<T>& box, T height, T width) {
  return Box<T>{smaller(larger(box.x1, T(0)), width), smaller(larger(box.y1, T(0)), height),
                smaller(larger(box.x2, T(0)), width), smaller(larger(box.y2, T(0)), height)};
}

template <typename T>
struct Candidate {
  T score;
  int32_t level;
  int64_t position;  // in its level: row * K + class
};

// Ties go to the finer level, then to the lower row, then to the lower class.
template <typename T>
RESOBJ_HD bool is_better(const Candidate<T>& a, const Candidate<T>& b) {
  if (a.score != b.score) return a.score > b.score;
  return a.level != b.level ? a.level < b.level : a.position < b.position;
}

// The results of all images: (N, D), followed by the dimensions below.
template <typename T>
struct DetectionOutputs {
  T* boxes;  // 4
  T* scores;
  int64_t* classes;
  T* factors;  // num_factors
  int64_t* rows;
  int64_t* counts;  // (N,)

  RESOBJ_HD void write(int64_t slot, const DenseLevel<T>& level, const ScoreRule<T>& rule,
                       int64_t image, const Candidate<T>& candidate, const Box<T>& box) const {
    const int64_t row = candidate.position / rule.num_classes;
    const int64_t k = candidate.position % rule.num_classes;
    put_box(slot, box);
    scores[slot] = candidate.score;
    classes[slot] = k;
    rows[slot] = level.first_row + row;
    load_probabilities(level, rule, image, row, k, factors + slot * rule.num_factors);
  }

  RESOBJ_HD void pad(int64_t slot, int num_factors) const {
    put_box(slot, Box<T>{T(0), T(0), T(0), T(0)});
    scores[slot] = T(0);
    classes[slot] = -1;
    rows[slot] = -1;
    for (int f = 0; f < num_factors; ++f) factors[slot * num_factors + f] = T(0);
  }

  RESOBJ_HD void put_box(int64_t slot, const Box<T>& box) const {
    T* out = boxes + 4 * slot;
    out[0] = box.x1;
    out[1] = box.y1;
    out[2] = box.x2;
    out[3] = box.y2;
  }
};

// A class logit below this cannot give a score of `least` or more, since no factor is above 1, nor
// a probability of `floor` or more. Lower than exact, by more than the rounding of scores.
template <typename T>
T lowest_logit(T least, T exponent, T floor) {
  const double slack = sizeof(T) == 8 ? 1e-12 : 1e-5;
  double p = 0;
  if (least > T(0) && exponent > T(0)) {
    p = std::pow(double(least) * (1 - slack), 1 / double(exponent));
  }
  p = larger(p, double(floor)) * (1 - slack);
  if (!(p > 0)) return -T(INFINITY);
  p = smaller(p, 1 - slack);
  return static_cast<T>(std::log(p / (1 - p)));
}

}  // namespace resobj
