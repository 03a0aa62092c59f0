// Loops over logits of which usually none in a block is above 0.
#pragma once

#include <algorithm>
#include <type_traits>

#include "resobj/bce_math.h"

namespace resobj {

constexpr int64_t kLogitBlock = 256;

// NaN counts.
template <typename T>
bool any_above_zero(const T* logits, int64_t count) {
  std::conditional_t<sizeof(T) == 8, int64_t, int32_t> any = 0;  // as wide as T, to vectorise
  for (int64_t j = 0; j < count; ++j) any |= !(logits[j] <= T(0));
  return any != 0;
}

// Calls f(first, size, exponentials, range) for each block of `count` logits, with
// small_exponential<range()> of each of its logits.
//
// The exponentials have a loop of their own: the arithmetic of one logit is a long chain, and in a
// single loop there would be too few vectors in flight.
template <typename T, typename F>
void for_each_logit_block(const T* logits, int64_t count, const F& f) {
  alignas(64) T exponentials[kLogitBlock];
  for (int64_t first = 0; first < count; first += kLogitBlock) {
    const int64_t size = std::min(kLogitBlock, count - first);
    const T* block = logits + first;
    const auto visit = [&](auto range) {
      for (int64_t j = 0; j < size; ++j) exponentials[j] = small_exponential<range()>(block[j]);
      f(first, size, static_cast<const T*>(exponentials), range);
    };
    if (any_above_zero(block, size)) {
      visit(std::integral_constant<LogitRange, LogitRange::kAny>());
    } else {
      visit(std::integral_constant<LogitRange, LogitRange::kNonPositive>());
    }
  }
}

}  // namespace resobj
