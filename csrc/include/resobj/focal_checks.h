// Argument handling of sigmoid_focal_loss that both backends share (host only).
#pragma once

#include <optional>
#include <type_traits>

#include "resobj/focal_math.h"
#include "resobj/tensor_checks.h"

namespace resobj {

constexpr const char* kFocalOp = "sigmoid_focal_loss";

inline void check_focal(const Tensor& logits, const Tensor& labels,
                        const std::optional<Tensor>& mask, double gamma) {
  check_devices(kFocalOp, {{"logits", logits}, {"labels", labels}});
  check_dtypes(kFocalOp, {{"logits", logits}});
  STD_TORCH_CHECK(logits.dim() >= 1, kFocalOp, ": logits must have shape (..., K)");
  STD_TORCH_CHECK(labels.scalar_type() == ScalarType::Long, kFocalOp, ": labels must be int64");
  check_one_per_row(kFocalOp, {"labels", labels}, {"logits", logits});
  if (mask.has_value()) {
    check_devices(kFocalOp, {{"logits", logits}, {"mask", *mask}});
    STD_TORCH_CHECK(mask->scalar_type() == ScalarType::Bool, kFocalOp, ": mask must be bool");
    check_one_per_row(kFocalOp, {"mask", *mask}, {"logits", logits});
  }
  STD_TORCH_CHECK(gamma >= 0, kFocalOp, ": gamma must not be negative");
}

// The arguments of sigmoid_focal_loss, contiguous. Keeps alive what the inputs point to.
struct FocalArguments {
  Tensor logits;
  Tensor labels;
  std::optional<Tensor> mask;
  double alpha;
  double gamma;

  FocalArguments(const Tensor& x, const Tensor& y, const std::optional<Tensor>& m, double alpha,
                 double gamma)
      : logits(torch::stable::contiguous(x)),
        labels(torch::stable::contiguous(y)),
        alpha(alpha),
        gamma(gamma) {
    if (m.has_value()) mask = torch::stable::contiguous(*m);
  }

  template <typename T>
  FocalInputs<T> inputs() const {
    return FocalInputs<T>{logits.const_data_ptr<T>(),
                          labels.const_data_ptr<int64_t>(),
                          mask.has_value() ? mask->const_data_ptr<bool>() : nullptr,
                          logits.size(logits.dim() - 1),
                          static_cast<T>(alpha < 0 ? 1.0 : alpha),
                          static_cast<T>(alpha < 0 ? 1.0 : 1.0 - alpha),
                          static_cast<T>(gamma)};
  }
};

// Calls f(inputs, focus), where focus() is a constant, as a template argument must be.
template <typename F>
void dispatch_focal(const FocalArguments& arguments, const F& f) {
  dispatch_float(arguments.logits, [&](auto scalar) {
    const auto inputs = arguments.inputs<decltype(scalar)>();
    if (arguments.gamma == 0) return f(inputs, std::integral_constant<Focus, Focus::kNone>());
    if (arguments.gamma == 2) return f(inputs, std::integral_constant<Focus, Focus::kSquare>());
    f(inputs, std::integral_constant<Focus, Focus::kPower>());
  });
}

}  // namespace resobj
