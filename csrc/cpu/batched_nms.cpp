// batched_nms on the CPU: boxes in one order by score, each tested against the kept boxes of its
// class alone, until there are enough. One thread: a thousand boxes take a few dozen microseconds.

#include <tuple>

#include "class_index.h"
#include "nms.h"
#include "resobj/nms_checks.h"

namespace resobj {
namespace {

// Indices of the kept boxes by descending score, at most `limit`.
template <typename T>
std::vector<int64_t> greedy_nms(const Candidates& candidates, double iou_threshold, int64_t limit) {
  const T* boxes = candidates.boxes.const_data_ptr<T>();
  const int64_t* ids = candidates.idxs.const_data_ptr<int64_t>();
  const std::vector<int32_t> order =
      order_by_score(candidates.scores.const_data_ptr<T>(), candidates.count());
  const ClassIndex classes(ids, candidates.count());
  GreedyNms<T> nms(classes.count(), round_down<T>(iou_threshold));
  std::vector<int64_t> keep;
  keep.reserve(limit);
  run_vectorized([&] {
    for (const int32_t i : order) {
      if (static_cast<int64_t>(keep.size()) == limit) break;
      const T* box = boxes + 4 * int64_t(i);
      if (nms.offer(classes(ids[i]), Box<T>{box[0], box[1], box[2], box[3]})) keep.push_back(i);
    }
  });
  return keep;
}

std::vector<int64_t> run(const char* op, const Tensor& boxes, const Tensor& scores,
                         const Tensor& idxs, double iou_threshold, int64_t max_output) {
  const Candidates candidates = parse_candidates(op, boxes, scores, idxs);
  check_threshold(op, iou_threshold);
  const int64_t limit = output_limit(op, candidates.count(), max_output);
  std::vector<int64_t> keep;
  dispatch_float(candidates.boxes, [&](auto scalar) {
    keep = greedy_nms<decltype(scalar)>(candidates, iou_threshold, limit);
  });
  return keep;
}

Tensor batched_nms(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                   double iou_threshold, int64_t max_output) {
  const std::vector<int64_t> keep =
      run("batched_nms", boxes, scores, idxs, iou_threshold, max_output);
  Tensor result = torch::stable::new_empty(idxs, {static_cast<int64_t>(keep.size())});
  std::copy(keep.begin(), keep.end(), result.mutable_data_ptr<int64_t>());
  return result;
}

std::tuple<Tensor, Tensor> batched_nms_padded(const Tensor& boxes, const Tensor& scores,
                                              const Tensor& idxs, double iou_threshold,
                                              int64_t max_output) {
  const std::vector<int64_t> keep =
      run("batched_nms_padded", boxes, scores, idxs, iou_threshold, max_output);
  const int64_t rows = max_output < 0 ? boxes.size(0) : max_output;
  Tensor result = torch::stable::new_empty(idxs, {rows});
  int64_t* out = result.mutable_data_ptr<int64_t>();
  std::fill(std::copy(keep.begin(), keep.end(), out), out + rows, int64_t(-1));
  Tensor count = torch::stable::new_empty(idxs, {});
  *count.mutable_data_ptr<int64_t>() = static_cast<int64_t>(keep.size());
  return {result, count};
}

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  m.impl("batched_nms", TORCH_BOX(&resobj::batched_nms));
  m.impl("batched_nms_padded", TORCH_BOX(&resobj::batched_nms_padded));
}
