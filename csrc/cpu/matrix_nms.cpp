// matrix_nms on the CPU: a class at a time, each box by descending score against all better ones.

#include <cmath>

#include "class_index.h"
#include "nms.h"
#include "resobj/nms_checks.h"

namespace resobj {
namespace {

constexpr int64_t kSerial = 512;  // so few boxes are not worth a second thread

// The boxes of one class by descending score.
template <typename T>
class BetterBoxes {
 public:
  // Room for `count` boxes; those not there yet have no area and decay nothing.
  explicit BetterBoxes(int32_t count) {
    const int64_t size = ceil_div(count, kLanes) * kLanes;
    for (std::vector<T>* values : {&x1_, &y1_, &x2_, &y2_, &area_, &highest_}) values->resize(size);
  }

  // Adds a box and returns the factor of its score.
  T add(const Box<T>& box, const MatrixRule<T>& rule) {
    const T box_area = area(box);
    T highest[kLanes] = {};
    T strength[kLanes] = {};
    for (int32_t first = 0; first < count_; first += kLanes) {
      for (int32_t k = 0; k < kLanes; ++k) {
        const int32_t i = first + k;
        const Box<T> better{x1_[i], y1_[i], x2_[i], y2_[i]};
        const T iou = overlap<Overlap::kIou>(better, area_[i], box, box_area);
        highest[k] = larger(highest[k], iou);
        strength[k] = larger(strength[k], rule.strength(iou, highest_[i]));
      }
    }
    for (int32_t k = 1; k < kLanes; ++k) {
      highest[0] = larger(highest[0], highest[k]);
      strength[0] = larger(strength[0], strength[k]);
    }
    x1_[count_] = box.x1;
    y1_[count_] = box.y1;
    x2_[count_] = box.x2;
    y2_[count_] = box.y2;
    area_[count_] = box_area;
    highest_[count_] = highest[0];
    ++count_;
    return rule.factor(strength[0]);
  }

 private:
  static constexpr int32_t kLanes = 16;  // one or two of the widest vectors

  int32_t count_ = 0;
  std::vector<T> x1_, y1_, x2_, y2_, area_;
  std::vector<T> highest_;  // IoU with a better box
};

template <typename T>
void decay_all(const Candidates& candidates, const MatrixRule<T>& rule, T* out) {
  const T* boxes = candidates.boxes.const_data_ptr<T>();
  const T* scores = candidates.scores.const_data_ptr<T>();
  const int64_t* ids = candidates.idxs.const_data_ptr<int64_t>();
  std::vector<int32_t> order = order_by_score(scores, candidates.count());
  const auto not_finite = [scores](int32_t i) { return !std::isfinite(scores[i]); };
  order.erase(std::remove_if(order.begin(), order.end(), not_finite), order.end());
  const ClassIndex classes(ids, candidates.count());
  const ClassGroups groups = group_by_class(order, ids, classes);
  std::fill(out, out + candidates.count(), T(0));
  const int64_t grain = candidates.count() < kSerial ? groups.count() : 1;
  torch::stable::parallel_for(0, groups.count(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      BetterBoxes<T> better(groups.size(c));
      run_vectorized([&] {
        for (int32_t k = 0; k < groups.size(c); ++k) {
          const int32_t i = groups.group(c)[k];
          const T* box = boxes + 4 * int64_t(i);
          out[i] = scores[i] * better.add(Box<T>{box[0], box[1], box[2], box[3]}, rule);
        }
      });
    }
  });
}

Tensor matrix_nms(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                  const std::string& kernel, double sigma) {
  const char* op = "matrix_nms";
  const Candidates candidates = parse_candidates(op, boxes, scores, idxs);
  Tensor result = torch::stable::new_empty(candidates.scores, {candidates.count()});
  dispatch_float(candidates.boxes, [&](auto scalar) {
    using T = decltype(scalar);
    const MatrixRule<T> rule = parse_matrix_rule<T>(op, kernel, sigma);
    decay_all(candidates, rule, result.mutable_data_ptr<T>());
  });
  return result;
}

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  m.impl("matrix_nms", TORCH_BOX(&resobj::matrix_nms));
}
