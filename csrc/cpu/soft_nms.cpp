// soft_nms on the CPU: each class separately, with its boxes as separate coordinate arrays. One
// pass over them decays the scores and finds the highest one left.

#include <cmath>
#include <limits>
#include <tuple>

#include "class_index.h"
#include "cpu_backend.h"
#include "instruction_sets.h"
#include "resobj/bits.h"
#include "resobj/nms_host.h"

namespace resobj {
namespace {

template <typename T>
struct Pick {
  T score;
  int32_t index;
};

// The boxes of one class by index.
template <typename T>
class SoftClass {
 public:
  SoftClass(const T* boxes, const T* scores, const int32_t* members, int32_t count) {
    for (std::vector<T>* values : {&x1_, &y1_, &x2_, &y2_, &area_, &score_}) values->resize(count);
    for (int32_t k = 0; k < count; ++k) {
      const Box<T> box = get_box(boxes, members[k]);
      x1_[k] = box.x1;
      y1_[k] = box.y1;
      x2_[k] = box.x2;
      y2_[k] = box.y2;
      area_[k] = area(box);
      score_[k] = scores[members[k]] + T(0);  // -0 becomes 0
    }
  }

  // The position of the highest score (ties: the first); -1 if none is left. Non-negative scores
  // have the order of their bits as integers, whose maximum vectorises.
  int32_t best() const {
    const int32_t count = static_cast<int32_t>(score_.size());
    Integer highest = std::numeric_limits<Integer>::min();
    for (int32_t k = 0; k < count; ++k) highest = larger(highest, bit_cast<Integer>(score_[k]));
    if (highest < 0) return -1;
    int32_t first = count;
    for (int32_t k = 0; k < count; ++k) {
      first = smaller(first, bit_cast<Integer>(score_[k]) == highest ? k : count);
    }
    return first;
  }

  T score(int32_t position) const { return score_[position]; }

  // Takes the box out by making its score negative, and decays the other scores.
  void take(int32_t position, const SoftRule<T>& rule) {
    const int32_t count = static_cast<int32_t>(score_.size());
    const Box<T> taken{x1_[position], y1_[position], x2_[position], y2_[position]};
    const T taken_area = area_[position];
    T* score = score_.data();
    for (int32_t k = 0; k < count; ++k) {
      const Box<T> box{x1_[k], y1_[k], x2_[k], y2_[k]};
      score[k] *= rule.weight(overlap<Overlap::kIou>(taken, taken_area, box, area_[k]));
    }
    score[position] = T(-1);
  }

 private:
  using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

  std::vector<T> x1_, y1_, x2_, y2_, area_, score_;
};

// Indices of the boxes with a finite score.
template <typename T>
std::vector<int32_t> finite_scores(const T* scores, int64_t count) {
  std::vector<int32_t> indices;
  indices.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    if (std::isfinite(scores[i])) indices.push_back(static_cast<int32_t>(i));
  }
  return indices;
}

// The boxes in the order in which they were taken.
template <typename T>
struct Taken {
  std::vector<Pick<T>> picks;
  int64_t rows;  // of the padded result
  Tensor scores, idxs;

  std::tuple<Tensor, Tensor> trimmed() const { return in_rows(count()); }

  std::tuple<Tensor, Tensor, Tensor> padded() const {
    Tensor number = torch::stable::new_empty(idxs, {});
    *number.mutable_data_ptr<int64_t>() = count();
    const auto [keep, new_scores] = in_rows(rows);
    return {keep, new_scores, number};
  }

 private:
  int64_t count() const { return static_cast<int64_t>(picks.size()); }

  std::tuple<Tensor, Tensor> in_rows(int64_t number) const {
    Tensor keep = torch::stable::new_empty(idxs, {number});
    Tensor new_scores = torch::stable::new_empty(scores, {number});
    int64_t* index_out = keep.mutable_data_ptr<int64_t>();
    T* score_out = new_scores.mutable_data_ptr<T>();
    for (int64_t k = 0; k < number; ++k) {
      index_out[k] = k < count() ? picks[k].index : -1;
      score_out[k] = k < count() ? picks[k].score : T(0);
    }
    return {keep, new_scores};
  }
};

struct Cpu : CpuBackend {
  template <typename T>
  static Taken<T> take(const Candidates& candidates, const SoftRule<T>& rule, double min_score,
                       const OutputSize& size) {
    const T* boxes = candidates.boxes.const_data_ptr<T>();
    const T* scores = candidates.scores.const_data_ptr<T>();
    const int64_t* ids = candidates.idxs.const_data_ptr<int64_t>();
    const ClassIndex classes(ids, candidates.count());
    const std::vector<int32_t> finite = finite_scores(scores, candidates.count());
    const ClassGroups groups = group_by_class(finite, ids, classes);
    std::vector<std::vector<Pick<T>>> picks(groups.count());
    torch::stable::parallel_for(0, groups.count(), groups.grain(), [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        if (groups.size(c) == 0) continue;
        run_vectorized([&] {
          SoftClass<T> boxes_left(boxes, scores, groups.group(c), groups.size(c));
          while (static_cast<int64_t>(picks[c].size()) < size.limit) {
            const int32_t best = boxes_left.best();
            if (best < 0 || static_cast<double>(boxes_left.score(best)) < min_score) break;
            picks[c].push_back({boxes_left.score(best), groups.group(c)[best]});
            boxes_left.take(best, rule);
          }
        });
      }
    });
    // Scores only fall, so the picks of a class already come by descending score.
    std::vector<Pick<T>> all;
    for (const auto& of_class : picks) all.insert(all.end(), of_class.begin(), of_class.end());
    std::sort(all.begin(), all.end(), [](const Pick<T>& a, const Pick<T>& b) {
      return a.score != b.score ? a.score > b.score : a.index < b.index;
    });
    if (static_cast<int64_t>(all.size()) > size.limit) all.resize(size.limit);
    return {std::move(all), size.rows, candidates.scores, candidates.idxs};
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  using namespace resobj;
  m.impl("soft_nms", TORCH_BOX((&host::soft_nms<Cpu, /*padded=*/false>)));
  m.impl("soft_nms_padded", TORCH_BOX((&host::soft_nms<Cpu, /*padded=*/true>)));
}
