// Stores that bypass the cache, for results that would not stay in it anyway: an ordinary store
// reads the memory that it overwrites.
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace resobj {

constexpr int64_t kBeyondCache = int64_t(1) << 25;  // bytes

// Copies what is in the cache to memory that will not be read soon. Call streaming_done() last.
template <typename T>
void stream(const T* __restrict__ from, int64_t count, T* __restrict__ to) {
#if defined(__SSE2__)
  constexpr int64_t kLine = 64;
  const int64_t beyond = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % kLine);
  const int64_t head = std::min<int64_t>(count, (kLine - beyond) % kLine / sizeof(T));
  std::copy(from, from + head, to);
  int64_t j = head;
  for (; j + int64_t(kLine / sizeof(T)) <= count; j += kLine / sizeof(T)) {
    const __m128i* source = reinterpret_cast<const __m128i*>(from + j);
    __m128i* target = reinterpret_cast<__m128i*>(to + j);
    for (int k = 0; k < 4; ++k) _mm_stream_si128(target + k, _mm_loadu_si128(source + k));
  }
  std::copy(from + j, from + count, to + j);
#else
  std::copy(from, from + count, to);
#endif
}

// Makes what was streamed visible to other threads.
inline void streaming_done() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace resobj
