// Runs a piece of code compiled for the best vector instructions of this processor.
//
// The result does not depend on which: nothing is contracted to fused multiply-add
// (-ffp-contract=off), and a loop never reorders a sum.
#pragma once

namespace resobj {

#if defined(__x86_64__) && defined(__GNUC__)

// `flatten` inlines all that `body` calls, so all of it is compiled for these instructions.
template <typename Body>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"), flatten,
               noinline)) void
run_with_avx512(const Body& body) {
  body();
}

template <typename Body>
__attribute__((target("avx2"), flatten, noinline)) void run_with_avx2(const Body& body) {
  body();
}

template <typename Body>
void run_vectorized(const Body& body) {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    run_with_avx512(body);
  } else if (__builtin_cpu_supports("avx2")) {
    run_with_avx2(body);
  } else {
    body();
  }
}

#else

template <typename Body>
void run_vectorized(const Body& body) {
  body();
}

#endif

}  // namespace resobj
