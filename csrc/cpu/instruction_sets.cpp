// Which vector instructions the CPU kernels use.

#include "instruction_sets.h"

#include <cstdlib>
#include <string>

namespace resobj {
namespace {

InstructionSet best_instruction_set() {
#if defined(__x86_64__) && defined(__GNUC__)
  const char* variable = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string limit = variable == nullptr ? "" : variable;
  if (limit == "default") return InstructionSet::kBaseline;
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && limit != "avx2") return InstructionSet::kAvx512;
  if (__builtin_cpu_supports("avx2")) return InstructionSet::kAvx2;
#endif
  return InstructionSet::kBaseline;
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet best = best_instruction_set();
  return best;
}

}  // namespace resobj

// For resobj_d2.ops._native, which cannot tell otherwise.
extern "C" __attribute__((visibility("default"))) const char* resobj_cpu_capability() {
  switch (resobj::instruction_set()) {
    case resobj::InstructionSet::kAvx512:
      return "avx512";
    case resobj::InstructionSet::kAvx2:
      return "avx2";
    case resobj::InstructionSet::kBaseline:
      break;
  }
  return "default";
}
