// residual_objectness_bce on the host, shared by both backends. A backend has
//   kAnchors                                              the number of anchors in one chunk
//   forward(inputs, outputs)
//   backward(inputs, grad_losses, thresholds, grad_logits, grad_residuals)
// and, if it has both in one pass,
//   forward_and_backward(inputs, grad_losses, outputs, grad_logits, grad_residuals)
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "resobj/residual_objectness_bce_math.h"
#include "resobj/tensor_checks.h"

namespace resobj {

constexpr const char* kResidualOp = "residual_objectness_bce";

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

inline bool parse_keep(const std::string& unselected) {
  STD_TORCH_CHECK(unselected == "update" || unselected == "keep", kResidualOp,
                  ": unknown unselected ", unselected);
  return unselected == "keep";
}

inline ResidualLayout make_layout(const Tensor& logits, Scope scope,
                                  const std::vector<int64_t>& anchors_per_level,
                                  int64_t chunk_size) {
  ResidualLayout layout;
  layout.scope = scope;
  layout.num_images = logits.size(0);
  layout.num_anchors = logits.size(1);
  layout.chunk_size = chunk_size;
  std::vector<int64_t> sizes{layout.num_anchors};
  if (layout.scope == Scope::kLevel) sizes = anchors_per_level;
  STD_TORCH_CHECK(!sizes.empty() && sizes.size() <= kMaxLevels, kResidualOp,
                  ": anchors_per_level has ", sizes.size(), " levels, not 1 to ", kMaxLevels);
  for (const int64_t size : sizes) {
    STD_TORCH_CHECK(size >= 0, kResidualOp, ": anchors_per_level has a negative size");
  }
  STD_TORCH_CHECK(sums_to(sizes, layout.num_anchors), kResidualOp,
                  ": anchors_per_level do not sum to the number of anchors");
  layout.num_levels = static_cast<int>(sizes.size());
  layout.level_begin[0] = 0;
  layout.chunk_begin[0] = 0;
  for (int level = 0; level < layout.num_levels; ++level) {
    layout.level_begin[level + 1] = layout.level_begin[level] + sizes[level];
    layout.chunk_begin[level + 1] = layout.chunk_begin[level] + ceil_div(sizes[level], chunk_size);
  }
  return layout;
}

inline void check_residual(const Tensor& logits, const Tensor& residuals, const Tensor& labels) {
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

// The results of the forward.
struct ResidualOutputs {
  Tensor losses;                     // (T+1)
  Tensor counts;                     // (T+1)
  Tensor thresholds;                 // (T, G)
  Tensor score_sums;                 // (T+1, 2)
  Tensor num_background_foreground;  // (2)

  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> as_tuple() const {
    return {losses, counts, thresholds, score_sums, num_background_foreground};
  }
};

// The arguments of the forward and the backward, checked and contiguous.
struct ResidualArguments {
  Tensor logits;
  Tensor residuals;
  Tensor labels;
  Detach detach;
  bool keep;
  ResidualLayout layout;

  ResidualArguments(const Tensor& o, const Tensor& r, const Tensor& y, const std::string& detach,
                    const std::string& min_scope, const std::string& unselected,
                    const std::vector<int64_t>& anchors_per_level, int64_t chunk_size) {
    check_residual(o, r, y);
    this->detach = parse_detach(detach);
    keep = parse_keep(unselected);
    layout = make_layout(o, parse_scope(min_scope), anchors_per_level, chunk_size);
    logits = as_contiguous(o);
    residuals = as_contiguous(r);
    labels = as_contiguous(y);
  }

  int64_t steps() const { return residuals.size(0); }

  template <typename T>
  ResidualInputs<T> inputs() const {
    return ResidualInputs<T>{logits.const_data_ptr<T>(),
                             residuals.const_data_ptr<T>(),
                             labels.const_data_ptr<int8_t>(),
                             static_cast<int>(steps()),
                             detach,
                             keep,
                             layout};
  }

  ResidualOutputs new_outputs() const {
    return ResidualOutputs{
        new_tensor(logits, {steps() + 1}),
        new_tensor(logits, {steps() + 1}, ScalarType::Long),
        new_tensor(logits, {steps(), layout.num_groups()}),
        new_tensor(logits, {steps() + 1, 2}),
        new_tensor(logits, {2}, ScalarType::Long),
    };
  }
};

// In addition to the checks in ResidualArguments.
inline void check_grad_losses(const Tensor& grad_losses, const ResidualArguments& arguments) {
  const std::initializer_list<Argument> tensors{{"logits", arguments.logits},
                                                {"grad_losses", grad_losses}};
  check_devices(kResidualOp, tensors);
  check_dtypes(kResidualOp, tensors);
  STD_TORCH_CHECK(grad_losses.dim() == 1 && grad_losses.size(0) == arguments.steps() + 1,
                  kResidualOp, ": grad_losses must have shape (T+1,)");
}

inline void check_thresholds(const Tensor& thresholds, const ResidualArguments& arguments) {
  const std::initializer_list<Argument> tensors{{"logits", arguments.logits},
                                                {"thresholds", thresholds}};
  check_devices(kResidualOp, tensors);
  check_dtypes(kResidualOp, tensors);
  const int64_t steps = arguments.steps();
  STD_TORCH_CHECK(thresholds.dim() == 2 && thresholds.size(0) == steps &&
                      thresholds.size(1) == arguments.layout.num_groups(),
                  kResidualOp, ": thresholds must have shape (T, G)");
}

namespace host {

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> residual_objectness_bce(
    const Tensor& logits, const Tensor& residuals, const Tensor& labels, std::string detach,
    std::string min_scope, std::string unselected, std::vector<int64_t> anchors_per_level) {
  const ResidualArguments arguments(logits, residuals, labels, detach, min_scope, unselected,
                                    anchors_per_level, Backend::kAnchors);
  const typename Backend::DeviceGuard guard(logits);
  ResidualOutputs outputs = arguments.new_outputs();
  dispatch_float(logits, [&](auto scalar) {
    Backend::forward(arguments.inputs<decltype(scalar)>(), outputs);
  });
  return outputs.as_tuple();
}

template <typename Backend>
std::tuple<Tensor, Tensor> residual_objectness_bce_backward(
    const Tensor& grad_losses, const Tensor& logits, const Tensor& residuals, const Tensor& labels,
    const Tensor& thresholds, std::string detach, std::string min_scope, std::string unselected,
    std::vector<int64_t> anchors_per_level) {
  const ResidualArguments arguments(logits, residuals, labels, detach, min_scope, unselected,
                                    anchors_per_level, Backend::kAnchors);
  check_grad_losses(grad_losses, arguments);
  check_thresholds(thresholds, arguments);
  const typename Backend::DeviceGuard guard(logits);
  const Tensor gradients = as_contiguous(grad_losses);
  const Tensor minima = as_contiguous(thresholds);
  Tensor grad_logits = new_tensor(logits, logits.sizes());
  Tensor grad_residuals = new_tensor(logits, residuals.sizes());
  dispatch_float(logits, [&](auto scalar) {
    using T = decltype(scalar);
    Backend::backward(arguments.inputs<T>(), gradients.const_data_ptr<T>(),
                      minima.const_data_ptr<T>(), grad_logits, grad_residuals);
  });
  return {grad_logits, grad_residuals};
}

// The results of the forward, and the gradients for incoming gradients that are known beforehand.
template <typename Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
residual_objectness_bce_with_gradient(const Tensor& grad_losses, const Tensor& logits,
                                      const Tensor& residuals, const Tensor& labels,
                                      std::string detach, std::string min_scope,
                                      std::string unselected,
                                      std::vector<int64_t> anchors_per_level) {
  const ResidualArguments arguments(logits, residuals, labels, detach, min_scope, unselected,
                                    anchors_per_level, Backend::kAnchors);
  check_grad_losses(grad_losses, arguments);
  const typename Backend::DeviceGuard guard(logits);
  const Tensor gradients = as_contiguous(grad_losses);
  ResidualOutputs outputs = arguments.new_outputs();
  Tensor grad_logits = new_tensor(logits, logits.sizes());
  Tensor grad_residuals = new_tensor(logits, residuals.sizes());
  dispatch_float(logits, [&](auto scalar) {
    using T = decltype(scalar);
    Backend::forward_and_backward(arguments.inputs<T>(), gradients.const_data_ptr<T>(), outputs,
                                  grad_logits, grad_residuals);
  });
  return std::tuple_cat(outputs.as_tuple(), std::make_tuple(grad_logits, grad_residuals));
}

}  // namespace host
}  // namespace resobj
