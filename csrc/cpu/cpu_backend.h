// What the host functions of include/resobj/*_host.h require of every CPU backend.
#pragma once

#include "resobj/tensor_checks.h"

namespace resobj {

struct CpuBackend {
  // On the CPU there is no device to switch to.
  struct DeviceGuard {
    explicit DeviceGuard(const Tensor&) {}
  };
};

}  // namespace resobj
