// Balanced L1 of one difference d, and its slope, with u = |d| / beta:
//   beta * (alpha / b * (b u + 1) ln(b u + 1) - alpha u)   and   alpha ln(b u + 1)   for u < 1,
//   beta * (gamma u + gamma / b - alpha)                   and   gamma               beyond.
// b = exp(gamma / alpha) - 1 makes the slope continuous.
#pragma once

#include <cmath>

#include "resobj/bce_math.h"

namespace resobj {

// The constants of the loss; computed in double on the host.
template <typename T>
struct BalancedL1 {
  T alpha, gamma, beta, b;
  T inverse_beta;
  T alpha_over_b;
  T offset;  // gamma / b - alpha

  BalancedL1(double alpha, double gamma, double beta)
      : alpha(static_cast<T>(alpha)), gamma(static_cast<T>(gamma)), beta(static_cast<T>(beta)) {
    inverse_beta = static_cast<T>(1 / beta);
    const double exact_b = std::expm1(gamma / alpha);
    b = static_cast<T>(exact_b);
    alpha_over_b = static_cast<T>(alpha / exact_b);
    offset = static_cast<T>(gamma / exact_b - alpha);
  }
};

// The inputs of the kernels, both contiguous.
template <typename T>
struct BalancedInputs {
  const T* pred;
  const T* target;
  BalancedL1<T> loss;
};

// (1 + y) log(1 + y) - y for y >= 0, where `log1p_y` is log(1 + y).
RESOBJ_HD float entropy_excess(float y, float log1p_y) {
  // A series, the sum over n >= 2 of (-y)^n / (n (n - 1)), where the difference below would cancel.
  float series = 1.0f / 30.0f;
  series = series * y - 1.0f / 20.0f;
  series = series * y + 1.0f / 12.0f;
  series = series * y - 1.0f / 6.0f;
  series = series * y + 0.5f;
  const float difference = (1.0f + y) * log1p_y - y;
  return y < 0.0625f ? series * y * y : difference;
}

RESOBJ_HD double entropy_excess(double y, double log1p_y) { return (1.0 + y) * log1p_y - y; }

// u
template <typename T>
RESOBJ_HD T distance(T difference, const BalancedL1<T>& loss) {
  return magnitude(difference) * loss.inverse_beta;
}

// Both from u and `log1p_bu`, the log1p_positive of b u.
template <typename T>
RESOBJ_HD T balanced_l1(T u, T log1p_bu, const BalancedL1<T>& loss) {
  const T curved = loss.alpha_over_b * entropy_excess(loss.b * u, log1p_bu);
  const T straight = loss.gamma * u + loss.offset;
  return loss.beta * (u < T(1) ? curved : straight);
}

template <typename T>
RESOBJ_HD T balanced_l1_slope(T difference, T u, T log1p_bu, const BalancedL1<T>& loss) {
  const T curved = loss.alpha * log1p_bu;
  const T slope = u < T(1) ? curved : loss.gamma;
  // At 0 the slope is 0; NaN stays as it is.
  return difference == difference ? with_sign_of(difference, slope) : difference;
}

template <typename T>
RESOBJ_HD T balanced_l1(T difference, const BalancedL1<T>& loss) {
  const T u = distance(difference, loss);
  return balanced_l1(u, log1p_positive(loss.b * u), loss);
}

template <typename T>
RESOBJ_HD T balanced_l1_slope(T difference, const BalancedL1<T>& loss) {
  const T u = distance(difference, loss);
  return balanced_l1_slope(difference, u, log1p_positive(loss.b * u), loss);
}

}  // namespace resobj
