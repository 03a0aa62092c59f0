// Needed by both compilers: host/device functions and small integer helpers.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define RESOBJ_HD __host__ __device__ __forceinline__
#else
#define RESOBJ_HD inline
#endif

namespace resobj {

RESOBJ_HD int64_t ceil_div(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

}  // namespace resobj
