// Argument handling of reassign_anchors that both backends share (host only).
#pragma once

#include "resobj/delta_math.h"
#include "resobj/match_anchors_checks.h"

namespace resobj {

constexpr const char* kReassignOp = "reassign_anchors";

using ReassignTuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

struct ReassignArguments {
  Tensor anchors, deltas;  // contiguous
  int64_t num_images, num_anchors;
  int64_t anchor_stride;  // anchors between those of one image and the next, 0 if shared

  ReassignArguments(const Tensor& a, const Tensor& d, int64_t images) {
    check_devices(kReassignOp, {{"anchors", a}, {"deltas", d}});
    check_dtypes(kReassignOp, {{"anchors", a}, {"deltas", d}});
    STD_TORCH_CHECK(d.dim() == 3 && d.size(0) == images && d.size(2) == 4, kReassignOp,
                    ": deltas must have shape (", images, ", number, 4)");
    const int64_t dim = a.dim();
    STD_TORCH_CHECK((dim == 2 || (dim == 3 && a.size(0) == images)) && a.size(dim - 1) == 4 &&
                        a.size(dim - 2) == d.size(1),
                    kReassignOp, ": anchors must have shape (", d.size(1), ", 4) or (", images,
                    ", ", d.size(1), ", 4)");
    anchors = torch::stable::contiguous(a);
    deltas = torch::stable::contiguous(d);
    num_images = images;
    num_anchors = d.size(1);
    anchor_stride = dim == 3 ? num_anchors : 0;
  }

  int64_t count() const { return num_images * num_anchors; }
};

template <typename T>
DeltaWeights<T> parse_weights(const std::vector<double>& weights, double scale_clamp) {
  STD_TORCH_CHECK(weights.size() == 4, kReassignOp, ": weights must be four numbers");
  DeltaWeights<T> rule;
  for (int i = 0; i < 4; ++i) {
    rule.weights[i] = static_cast<T>(weights[i]);
    rule.factors[i] = static_cast<T>(1 / weights[i]);
  }
  rule.scale_clamp = static_cast<T>(scale_clamp);
  return rule;
}

}  // namespace resobj
