// Binary cross entropy with logits, its derivative, and the exponential and logarithm they need.
//
// With the signed logit z = o for a foreground and z = -o for a background anchor,
//   BCE(o) = log(1 + exp(-z)) = max(-z, 0) + log1p(exp(-|z|))   and   dBCE/dz = -sigmoid(-z).
// Only exp of non-positive numbers and log1p on [0, 1] are needed. In float32 both are polynomials
// (minimax fits by Remez exchange), which compilers vectorise without a math library.
#pragma once

#include <cmath>
#include <cstdint>

#include "resobj/bits.h"
#include "resobj/macros.h"

namespace resobj {

// exp(x) for x <= 0 in two halves, for loops in which the whole chain leaves too few vectors in
// flight: exp(x) = exp(rest) * power.
template <typename T>
struct SplitExponential {
  T rest;
  T power;
};

RESOBJ_HD SplitExponential<float> split_exponential(float x) {
  const float lowest = -87.3f;  // exp(lowest) is still a normal number
  const float clamped = x < lowest ? lowest : x;
  // Adding 1.5 * 2^23 rounds to an integer n, which then sits in the low bits of the sum.
  const float shift = 12582912.0f;
  const float shifted = clamped * 1.44269504f + shift;
  const float n = shifted - shift;
  // ln 2 in two parts, the first with few enough bits that n * 0.693359375 is exact.
  const float rest = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  const int32_t exponent = bit_cast<int32_t>(shifted) - bit_cast<int32_t>(shift);
  const float power = bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23);
  return SplitExponential<float>{rest, x < lowest ? 0.0f : power};
}

RESOBJ_HD float join_exponential(SplitExponential<float> split) {
  const float r = split.rest;
  float p = 0.001394112413f;
  p = p * r + 0.008363181235f;
  p = p * r + 0.04166637513f;
  p = p * r + 0.1666657697f;
  p = p * r + 0.5f;
  p = (p * r) * r + r + 1.0f;
  return p * split.power;
}

// In float64 the first half is all of it.
RESOBJ_HD SplitExponential<double> split_exponential(double x) { return {x, exp(x)}; }

RESOBJ_HD double join_exponential(SplitExponential<double> split) { return split.power; }

// exp(x) for x <= 0, relative error below 2e-7; 0 below -87.3 and NaN for NaN.
template <typename T>
RESOBJ_HD T exp_nonpositive(T x) {
  return join_exponential(split_exponential(x));
}

// log(1 + u) for u in [0, 1], relative error below 3e-7.
RESOBJ_HD float log1p_unit(float u) {
  float p = 0.005232690027f;
  p = p * u - 0.02950521992f;
  p = p * u + 0.07822591751f;
  p = p * u - 0.136632425f;
  p = p * u + 0.1910600499f;
  p = p * u - 0.2484298169f;
  p = p * u + 0.3331909673f;
  p = p * u - 0.4999949314f;
  p = p * u + 1.0f;
  return p * u;
}

RESOBJ_HD double log1p_unit(double u) { return log1p(u); }

// log(1 + y) for y >= 0 in two halves, so that loops can be cut between them: the logarithm of the
// power of two in 1 + y, and what remains, whose log1p_unit is to be added.
template <typename T>
struct SplitLogarithm {
  T power;
  T rest;
};

RESOBJ_HD SplitLogarithm<float> split_log1p(float y) {
  const float v = 1.0f + y;
  const int32_t bits = bit_cast<int32_t>(v);
  const int32_t exponent = (bits >> 23) - 127;
  const float mantissa = bit_cast<float>((bits & 0x007fffff) | 0x3f800000);
  // Below 2 nothing is subtracted, since y is more exact than 1 + y - 1.
  const float rest = exponent == 0 ? y : mantissa - 1.0f;
  return SplitLogarithm<float>{static_cast<float>(exponent) * 0.69314718f, rest};
}

RESOBJ_HD float join_log1p(SplitLogarithm<float> split) {
  return split.power + log1p_unit(split.rest);
}

// In float64 the second half is all of it.
RESOBJ_HD SplitLogarithm<double> split_log1p(double y) { return {0.0, y}; }

RESOBJ_HD double join_log1p(SplitLogarithm<double> split) { return log1p(split.rest); }

// log(1 + y) for y >= 0, relative error below 4e-7; undefined for infinity and NaN.
template <typename T>
RESOBJ_HD T log1p_positive(T y) {
  return join_log1p(split_log1p(y));
}

// One instruction, which a choice by sign would not be.
RESOBJ_HD float magnitude(float x) { return fabsf(x); }
RESOBJ_HD double magnitude(double x) { return fabs(x); }

RESOBJ_HD float with_sign_of(float sign, float value) { return copysignf(value, sign); }
RESOBJ_HD double with_sign_of(double sign, double value) { return copysign(value, sign); }

// Which logits there can be. The results are the same; where none is positive, they take less to
// compute.
enum class LogitRange { kAny, kNonPositive };

// exp(-|x|)
template <LogitRange range, typename T>
RESOBJ_HD T small_exponential(T x) {
  return exp_nonpositive(range == LogitRange::kAny ? -magnitude(x) : x);
}

template <typename T>
struct BceAndScore {
  T bce;
  T score;  // sigmoid(o)
};

// Both from a single exponential. `sign` is 1 for a foreground and -1 for a background anchor.
template <typename T>
RESOBJ_HD BceAndScore<T> bce_and_score(T logit, T sign) {
  const T e = exp_nonpositive(-magnitude(logit));
  const T r = T(1) / (T(1) + e);
  const T z = sign * logit;
  return BceAndScore<T>{(z < T(0) ? -z : T(0)) + log1p_unit(e), logit < T(0) ? e * r : r};
}

// sigmoid(o), where `e` is exp(-|o|).
template <typename T>
RESOBJ_HD T sigmoid_from(T logit, T e) {
  const T r = T(1) / (T(1) + e);
  return logit < T(0) ? e * r : r;
}

// sigmoid(-z), the negative derivative of the BCE with respect to z.
template <typename T>
RESOBJ_HD T sigmoid_of_negative(T z) {
  const T e = exp_nonpositive(-magnitude(z));
  const T r = T(1) / (T(1) + e);
  return z < T(0) ? r : e * r;
}

}  // namespace resobj
