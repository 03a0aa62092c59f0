// matrix_nms on the CPU: class by class, each box by descending score against all better ones.

#include <cmath>

#include "class_index.h"
#include "cpu_backend.h"
#include "nms.h"
#include "resobj/nms_host.h"

namespace resobj {
namespace {

// The boxes of one class by descending score.
template <typename T>
class BetterBoxes {
 public:
  explicit BetterBoxes(int32_t capacity) {
    for (std::vector<T>* values : {&x1_, &y1_, &x2_, &y2_, &area_, &highest_}) {
      values->resize(capacity);
    }
  }

  // Adds a box and returns the factor of its score.
  T add(const Box<T>& box, const MatrixRule<T>& rule) {
    const T box_area = area(box);
    // IoUs are non-negative, so their bits have the same order; an integer maximum vectorises, a
    // float one does not.
    Integer highest = 0;
    Integer strength = 0;
    for (int32_t i = 0; i < count_; ++i) {
      const Box<T> better{x1_[i], y1_[i], x2_[i], y2_[i]};
      const T iou = overlap<Overlap::kIou>(better, area_[i], box, box_area);
      highest = larger(highest, bit_cast<Integer>(iou));
      const T own = larger(rule.strength(iou, highest_[i]), T(0));
      strength = larger(strength, bit_cast<Integer>(own));
    }
    x1_[count_] = box.x1;
    y1_[count_] = box.y1;
    x2_[count_] = box.x2;
    y2_[count_] = box.y2;
    area_[count_] = box_area;
    highest_[count_] = bit_cast<T>(highest);
    ++count_;
    return rule.factor(bit_cast<T>(strength));
  }

 private:
  using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

  int32_t count_ = 0;
  std::vector<T> x1_, y1_, x2_, y2_, area_;
  std::vector<T> highest_;  // IoU with a better box
};

struct Cpu : CpuBackend {
  template <typename T>
  static void decay(const Candidates& candidates, const MatrixRule<T>& rule, Tensor& result) {
    const T* boxes = candidates.boxes.const_data_ptr<T>();
    const T* scores = candidates.scores.const_data_ptr<T>();
    const int64_t* ids = candidates.idxs.const_data_ptr<int64_t>();
    T* out = result.mutable_data_ptr<T>();
    std::vector<int32_t> order = order_by_score(scores, candidates.count());
    const auto not_finite = [scores](int32_t i) { return !std::isfinite(scores[i]); };
    order.erase(std::remove_if(order.begin(), order.end(), not_finite), order.end());
    const ClassIndex classes(ids, candidates.count());
    const ClassGroups groups = group_by_class(order, ids, classes);
    std::fill(out, out + candidates.count(), T(0));
    torch::stable::parallel_for(0, groups.count(), groups.grain(), [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        BetterBoxes<T> better(groups.size(c));
        run_vectorized([&] {
          for (int32_t k = 0; k < groups.size(c); ++k) {
            const int32_t i = groups.group(c)[k];
            out[i] = scores[i] * better.add(get_box(boxes, i), rule);
          }
        });
      }
    });
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  using namespace resobj;
  m.impl("matrix_nms", TORCH_BOX(&host::matrix_nms<Cpu>));
}
