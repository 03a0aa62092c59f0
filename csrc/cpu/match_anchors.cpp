// match_anchors on the CPU.

#include "anchor_matcher.h"
#include "resobj/match_anchors_host.h"

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  using namespace resobj;
  m.impl("match_anchors", TORCH_BOX(&host::match_anchors<MatchingCpu>));
}
