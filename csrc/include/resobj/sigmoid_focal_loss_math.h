// Focal loss of one sigmoid, and its slope.
//
// Both are functions of the wrong logit w: the logit itself if the class is absent, minus the logit
// if it is present. With q = sigmoid(w), the probability of the wrong answer,
//   FL(w) = q^gamma * softplus(w)   and   dFL/dw = q^gamma * (gamma * (1 - q) * softplus(w) + q).
#pragma once

#include "resobj/bce_math.h"

namespace resobj {

// How q^gamma is computed: for gamma = 0, gamma = 2, or any other.
enum class Focus { kNone, kSquare, kPower };

// The inputs of the kernels, all contiguous; `mask` may be null.
template <typename T>
struct FocalInputs {
  const T* logits;        // (anchors, num_classes)
  const int64_t* labels;  // (anchors)
  const bool* mask;       // (anchors)
  int64_t num_classes;
  T positive_weight;
  T negative_weight;
  T gamma;

  RESOBJ_HD bool counts(int64_t anchor) const {
    return labels[anchor] >= 0 && (mask == nullptr || mask[anchor]);
  }
};

// The common part of the loss and its slope.
template <typename T>
struct WrongAnswer {
  T softplus;     // log(1 + exp(w))
  T probability;  // q
  T right;        // 1 - q, without cancellation
  T focus;        // q^gamma
};

// `e` is small_exponential(w).
template <Focus focus, LogitRange range, typename T>
RESOBJ_HD WrongAnswer<T> wrong_answer(T w, T e, T gamma) {
  const T zero = T(0);
  const bool negative = range == LogitRange::kNonPositive || w < zero;
  const T log1p_e = log1p_unit(e);
  const T larger_one = T(1) / (T(1) + e);
  const T smaller_one = e * larger_one;
  WrongAnswer<T> wrong;
  wrong.softplus = range == LogitRange::kNonPositive ? log1p_e : (w > zero ? w : zero) + log1p_e;
  wrong.probability = negative ? smaller_one : larger_one;
  wrong.right = negative ? larger_one : smaller_one;
  wrong.focus = T(1);
  if (focus == Focus::kSquare) wrong.focus = wrong.probability * wrong.probability;
  if (focus == Focus::kPower) {
    const T minus_log_q = (negative ? -w : zero) + log1p_e;
    wrong.focus = exp_nonpositive(-gamma * minus_log_q);
  }
  return wrong;
}

template <typename T>
RESOBJ_HD T focal_loss(const WrongAnswer<T>& wrong) {
  return wrong.focus * wrong.softplus;
}

template <Focus focus, typename T>
RESOBJ_HD T focal_slope(const WrongAnswer<T>& wrong, T gamma) {
  if (focus == Focus::kNone) return wrong.probability;
  return wrong.focus * (gamma * wrong.right * wrong.softplus + wrong.probability);
}

// The same from the wrong logit.
template <Focus focus, typename T>
RESOBJ_HD T focal_loss(T w, T gamma) {
  const T e = small_exponential<LogitRange::kAny>(w);
  return focal_loss(wrong_answer<focus, LogitRange::kAny>(w, e, gamma));
}

template <Focus focus, typename T>
RESOBJ_HD T focal_slope(T w, T gamma) {
  const T e = small_exponential<LogitRange::kAny>(w);
  return focal_slope<focus>(wrong_answer<focus, LogitRange::kAny>(w, e, gamma), gamma);
}

}  // namespace resobj
