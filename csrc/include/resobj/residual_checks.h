// Argument handling of residual_objectness_bce that both backends share (host only).
#pragma once

#include <string>
#include <vector>

#include "resobj/residual_layout.h"
#include "resobj/tensor_checks.h"

namespace resobj {

constexpr const char* kResidualOp = "residual_objectness_bce";

struct ResidualOptions {
  Detach detach;
  bool keep;  // unselected="keep"
  ResidualLayout layout;
};

inline Scope parse_scope(const std::string& value) {
  if (value == "image") return Scope::kImage;
  if (value == "batch") return Scope::kBatch;
  if (value == "level") return Scope::kLevel;
  STD_TORCH_CHECK(value == "none", kResidualOp, ": unknown min_scope ", value);
  return Scope::kNone;
}

inline Detach parse_detach(const std::string& value) {
  if (value == "all") return Detach::kAll;
  if (value == "objectness") return Detach::kObjectness;
  STD_TORCH_CHECK(value == "none", kResidualOp, ": unknown detach ", value);
  return Detach::kNone;
}

inline ResidualOptions parse_options(const Tensor& logits, const std::string& detach,
                                     const std::string& min_scope, const std::string& unselected,
                                     const std::vector<int64_t>& level_sizes, int64_t chunk_size) {
  ResidualOptions options;
  options.detach = parse_detach(detach);
  STD_TORCH_CHECK(unselected == "update" || unselected == "keep", kResidualOp,
                  ": unknown unselected ", unselected);
  options.keep = unselected == "keep";
  ResidualLayout& layout = options.layout;
  layout.scope = parse_scope(min_scope);
  layout.num_images = logits.size(0);
  layout.num_anchors = logits.size(1);
  layout.chunk_size = chunk_size;
  std::vector<int64_t> sizes{layout.num_anchors};
  if (layout.scope == Scope::kLevel) sizes = level_sizes;
  STD_TORCH_CHECK(!sizes.empty() && sizes.size() <= kMaxLevels, kResidualOp, ": level_sizes has ",
                  sizes.size(), " levels, not 1 to ", kMaxLevels);
  layout.num_levels = static_cast<int>(sizes.size());
  layout.level_begin[0] = 0;
  layout.chunk_begin[0] = 0;
  for (int level = 0; level < layout.num_levels; ++level) {
    STD_TORCH_CHECK(sizes[level] >= 0, kResidualOp, ": level_sizes has a negative size");
    layout.level_begin[level + 1] = layout.level_begin[level] + sizes[level];
    layout.chunk_begin[level + 1] = layout.chunk_begin[level] + ceil_div(sizes[level], chunk_size);
  }
  STD_TORCH_CHECK(layout.level_begin[layout.num_levels] == layout.num_anchors, kResidualOp,
                  ": level_sizes do not sum to the number of anchors");
  return options;
}

inline void check_forward(const Tensor& logits, const Tensor& residuals, const Tensor& labels) {
  check_devices(kResidualOp, {{"logits", logits}, {"residuals", residuals}, {"labels", labels}});
  check_dtypes(kResidualOp, {{"logits", logits}, {"residuals", residuals}});
  STD_TORCH_CHECK(labels.scalar_type() == ScalarType::Char, kResidualOp, ": labels must be int8");
  STD_TORCH_CHECK(logits.dim() == 2, kResidualOp, ": logits must have shape (N, R)");
  STD_TORCH_CHECK(residuals.dim() == 3 && residuals.size(1) == logits.size(0) &&
                      residuals.size(2) == logits.size(1) && residuals.size(0) <= kMaxSteps,
                  kResidualOp, ": residuals must have shape (T, N, R) with T <= ", kMaxSteps);
  STD_TORCH_CHECK(
      labels.dim() == 2 && labels.size(0) == logits.size(0) && labels.size(1) == logits.size(1),
      kResidualOp, ": labels must have the shape of logits");
}

// Beside check_forward, with the refined logits in the place of the residuals.
inline void check_backward(const Tensor& grad_losses, const Tensor& logits, const Tensor& refined,
                           const Tensor& thresholds, int64_t num_groups) {
  check_devices(kResidualOp,
                {{"logits", logits}, {"grad_losses", grad_losses}, {"thresholds", thresholds}});
  check_dtypes(kResidualOp,
               {{"logits", logits}, {"grad_losses", grad_losses}, {"thresholds", thresholds}});
  STD_TORCH_CHECK(grad_losses.dim() == 1 && grad_losses.size(0) == refined.size(0) + 1, kResidualOp,
                  ": grad_losses must have shape (T+1,)");
  STD_TORCH_CHECK(thresholds.dim() == 2 && thresholds.size(0) == refined.size(0) &&
                      thresholds.size(1) == num_groups,
                  kResidualOp, ": thresholds must have shape (T, G)");
}

}  // namespace resobj
