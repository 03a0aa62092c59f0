// Runs a piece of code compiled for the best vector instructions of this processor.
//
// The result does not depend on the choice: nothing is contracted to fused multiply-add
// (-ffp-contract=off), and no loop reorders a sum.
#pragma once

namespace resobj {

enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

// The best instructions of this processor, limited by torch's variable ATEN_CPU_CAPABILITY ("avx2"
// or "default"). Determined once per process.
InstructionSet instruction_set();

#if defined(__x86_64__) && defined(__GNUC__)

#if defined(__clang__)
#define RESOBJ_AVX512 "avx512f,avx512bw,avx512dq,avx512vl"
#else
// By default GCC uses half-width vectors on most processors; clang has no such option here.
#define RESOBJ_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"
#endif

// `flatten` inlines everything that `body` calls, so all of it is compiled for these instructions.
template <typename Body>
__attribute__((target(RESOBJ_AVX512), flatten, noinline)) void run_with_avx512(const Body& body) {
  body();
}

template <typename Body>
__attribute__((target("avx2"), flatten, noinline)) void run_with_avx2(const Body& body) {
  body();
}

template <typename Body>
void run_vectorized(const Body& body) {
  switch (instruction_set()) {
    case InstructionSet::kAvx512:
      return run_with_avx512(body);
    case InstructionSet::kAvx2:
      return run_with_avx2(body);
    case InstructionSet::kBaseline:
      return body();
  }
}

#else

template <typename Body>
void run_vectorized(const Body& body) {
  body();
}

#endif

}  // namespace resobj
