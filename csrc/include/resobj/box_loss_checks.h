// Argument handling of the box losses that both backends share (host only).
#pragma once

#include <optional>

#include "resobj/balanced_l1_loss_math.h"
#include "resobj/box_checks.h"
#include "resobj/box_gradients.h"

namespace resobj {

constexpr const char* kGiouOp = "giou_loss";

// The arguments of giou_loss, checked and contiguous.
struct GiouArguments {
  Tensor pred;
  Tensor target;
  std::optional<Tensor> mask;

  GiouArguments(const Tensor& p, const Tensor& t, const std::optional<Tensor>& m) {
    check_pairs(kGiouOp, {"pred", p}, {"target", t});
    pred = as_contiguous(p);
    target = as_contiguous(t);
    if (!m.has_value()) return;
    check_devices(kGiouOp, {{"pred", p}, {"mask", *m}});
    STD_TORCH_CHECK(m->scalar_type() == ScalarType::Bool, kGiouOp, ": mask must be bool");
    check_one_per_row(kGiouOp, {"mask", *m}, {"pred", p});
    mask = as_contiguous(*m);
  }

  int64_t count() const { return pred.numel() / 4; }

  template <typename T>
  GiouInputs<T> inputs() const {
    return GiouInputs<T>{pred.const_data_ptr<T>(), target.const_data_ptr<T>(),
                         mask.has_value() ? mask->const_data_ptr<bool>() : nullptr};
  }
};

constexpr const char* kBalancedOp = "balanced_l1_loss";

// The arguments of balanced_l1_loss, checked and contiguous.
struct BalancedArguments {
  Tensor pred;
  Tensor target;
  double alpha;
  double gamma;
  double beta;

  BalancedArguments(const Tensor& p, const Tensor& t, double alpha, double gamma, double beta)
      : alpha(alpha), gamma(gamma), beta(beta) {
    check_devices(kBalancedOp, {{"pred", p}, {"target", t}});
    check_dtypes(kBalancedOp, {{"pred", p}, {"target", t}});
    check_same_shape(kBalancedOp, {"target", t}, {"pred", p});
    STD_TORCH_CHECK(alpha > 0 && gamma > 0 && beta > 0, kBalancedOp,
                    ": alpha, gamma and beta must be positive");
    pred = as_contiguous(p);
    target = as_contiguous(t);
  }

  int64_t count() const { return pred.numel(); }

  template <typename T>
  BalancedInputs<T> inputs() const {
    return BalancedInputs<T>{pred.const_data_ptr<T>(), target.const_data_ptr<T>(),
                             BalancedL1<T>(alpha, gamma, beta)};
  }
};

}  // namespace resobj
