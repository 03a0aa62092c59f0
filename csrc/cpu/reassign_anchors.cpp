// reassign_anchors on the CPU: refines the anchors, matches them, and encodes their matched boxes.

#include "anchor_matcher.h"
#include "loss_sum.h"
#include "resobj/reassign_anchors_host.h"

namespace resobj {
namespace {

struct Cpu : MatchingCpu {
  template <typename T>
  static void refine(const ReassignArguments& arguments, const DeltaWeights<T>& weights,
                     Tensor& boxes) {
    const T* anchors = arguments.anchors.const_data_ptr<T>();
    const T* deltas = arguments.deltas.const_data_ptr<T>();
    T* out = boxes.mutable_data_ptr<T>();
    for (int64_t image = 0; image < arguments.num_images; ++image) {
      const T* from = anchors + 4 * image * arguments.anchor_stride;
      const int64_t first = 4 * image * arguments.num_anchors;
      for_each_chunk(arguments.num_anchors, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          set_box(out + first, i, resobj::refine(from + 4 * i, deltas + first + 4 * i, weights));
        }
      });
    }
  }

  template <typename T>
  static void encode(const MatchArguments& arguments, const MatchResult& result,
                     const DeltaWeights<T>& weights, Tensor& targets) {
    const T* boxes = arguments.anchors.const_data_ptr<T>();
    const T* gts = arguments.gts.boxes.const_data_ptr<T>();
    const int64_t* index = result.gt_index.const_data_ptr<int64_t>();
    const int8_t* label = result.label.const_data_ptr<int8_t>();
    T* out = targets.mutable_data_ptr<T>();
    for (int64_t image = 0; image < arguments.num_images; ++image) {
      const T* own = gts + 4 * arguments.gts.offsets[image];
      const int64_t first = image * arguments.num_anchors;
      for_each_chunk(arguments.num_anchors, [=](int64_t begin, int64_t end) {
        std::memset(out + 4 * (first + begin), 0, 4 * sizeof(T) * (end - begin));
        for (int64_t i = first + begin; i < first + end; ++i) {
          if (label[i] == 1) {
            resobj::encode(boxes + 4 * i, own + 4 * index[i], weights, out + 4 * i);
          }
        }
      });
    }
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  using namespace resobj;
  m.impl("reassign_anchors", TORCH_BOX(&host::reassign_anchors<Cpu>));
}
