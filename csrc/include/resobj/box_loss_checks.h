// Argument handling of the box losses that both backends share (host only).
#pragma once

#include <optional>

#include "resobj/box_checks.h"

namespace resobj {

constexpr const char* kGiouOp = "giou_loss";

inline void check_giou_loss(const Tensor& pred, const Tensor& target,
                            const std::optional<Tensor>& mask) {
  check_pairs(kGiouOp, {"pred", pred}, {"target", target});
  if (mask.has_value()) {
    check_devices(kGiouOp, {{"pred", pred}, {"mask", *mask}});
    STD_TORCH_CHECK(mask->scalar_type() == ScalarType::Bool, kGiouOp, ": mask must be bool");
    check_one_per_row(kGiouOp, {"mask", *mask}, {"pred", pred});
  }
}

// The arguments of giou_loss, contiguous.
struct GiouArguments {
  Tensor pred;
  Tensor target;
  std::optional<Tensor> mask;

  GiouArguments(const Tensor& p, const Tensor& t, const std::optional<Tensor>& m)
      : pred(torch::stable::contiguous(p)), target(torch::stable::contiguous(t)) {
    if (m.has_value()) mask = torch::stable::contiguous(*m);
  }

  int64_t count() const { return pred.numel() / 4; }

  const bool* mask_data() const {
    return mask.has_value() ? mask->const_data_ptr<bool>() : nullptr;
  }
};

constexpr const char* kBalancedOp = "balanced_l1_loss";

inline void check_balanced_l1(const Tensor& pred, const Tensor& target, double alpha, double gamma,
                              double beta) {
  check_devices(kBalancedOp, {{"pred", pred}, {"target", target}});
  check_dtypes(kBalancedOp, {{"pred", pred}, {"target", target}});
  check_same_shape(kBalancedOp, {"target", target}, {"pred", pred});
  STD_TORCH_CHECK(alpha > 0 && gamma > 0 && beta > 0, kBalancedOp,
                  ": alpha, gamma and beta must be positive");
}

}  // namespace resobj
