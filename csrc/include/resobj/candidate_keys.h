// The order of a level's candidates as digits, for radix selection of the best (no torch).
#pragma once

#include "resobj/bits.h"
#include "resobj/dense_detections_math.h"

namespace resobj {

constexpr int kDigitBits = 11;
constexpr int kBuckets = 1 << kDigitBits;
constexpr int kPositionDigits = 3;
constexpr int64_t kMaxLogits = int64_t(1) << 31;  // per level; positions fit into their digits

template <typename T>
constexpr int kScoreDigits = sizeof(T) == 8 ? 6 : 3;

// Orders the candidates of a level: a larger key is a better candidate.
struct Key {
  uint64_t score;     // the bits; scores are non-negative, so these have their order
  uint64_t position;  // counted from the end

  RESOBJ_HD bool operator>=(const Key& other) const {
    return score != other.score ? score > other.score : position >= other.position;
  }
};

RESOBJ_HD uint64_t score_bits(float score) { return bit_cast<uint32_t>(score); }
RESOBJ_HD uint64_t score_bits(double score) { return bit_cast<uint64_t>(score); }

template <typename T>
RESOBJ_HD Key make_key(const Candidate<T>& candidate) {
  return {score_bits(candidate.score), static_cast<uint64_t>(kMaxLogits - 1 - candidate.position)};
}

// Digit `d` of a key, counted from the most significant, is `part >> shift` modulo kBuckets.
template <typename T>
RESOBJ_HD int digit_shift(int d) {
  const int last = d < kScoreDigits<T> ? kScoreDigits<T> : kScoreDigits<T> + kPositionDigits;
  return kDigitBits * (last - 1 - d);
}

template <typename T>
RESOBJ_HD int digit(const Key& key, int d) {
  const uint64_t part = d < kScoreDigits<T> ? key.score : key.position;
  return static_cast<int>(part >> digit_shift<T>(d) & (kBuckets - 1));
}

// Whether the first `d` digits of two keys are equal.
template <typename T>
RESOBJ_HD bool same_digits(const Key& a, const Key& b, int d) {
  if (d == 0) return true;
  const int shift = digit_shift<T>(d - 1);
  if (d <= kScoreDigits<T>) return a.score >> shift == b.score >> shift;
  return a.score == b.score && a.position >> shift == b.position >> shift;
}

}  // namespace resobj
