// batched_nms on the CPU: boxes are taken by descending score, each tested only against the kept
// boxes of its class, until there are enough. One thread: 1000 boxes take a few dozen microseconds.

#include <tuple>

#include "class_index.h"
#include "cpu_backend.h"
#include "nms.h"
#include "resobj/nms_host.h"

namespace resobj {
namespace {

// Indices of the kept boxes by descending score.
struct Kept {
  std::vector<int64_t> indices;
  int64_t rows;  // of the padded result
  Tensor like;

  Tensor trimmed() const { return in_rows(static_cast<int64_t>(indices.size())); }

  std::tuple<Tensor, Tensor> padded() const {
    Tensor count = torch::stable::new_empty(like, {});
    *count.mutable_data_ptr<int64_t>() = static_cast<int64_t>(indices.size());
    return {in_rows(rows), count};
  }

 private:
  Tensor in_rows(int64_t number) const {
    Tensor result = torch::stable::new_empty(like, {number});
    int64_t* out = result.mutable_data_ptr<int64_t>();
    std::fill(std::copy(indices.begin(), indices.end(), out), out + number, int64_t(-1));
    return result;
  }
};

struct Cpu : CpuBackend {
  template <typename T>
  static Kept suppress(const Candidates& candidates, T threshold, const OutputSize& size) {
    const T* boxes = candidates.boxes.const_data_ptr<T>();
    const int64_t* ids = candidates.idxs.const_data_ptr<int64_t>();
    const std::vector<int32_t> order =
        order_by_score(candidates.scores.const_data_ptr<T>(), candidates.count());
    const ClassIndex classes(ids, candidates.count());
    GreedyNms<T> nms(classes.count(), threshold);
    std::vector<int64_t> keep;
    keep.reserve(size.limit);
    run_vectorized([&] {
      for (const int32_t i : order) {
        if (static_cast<int64_t>(keep.size()) == size.limit) break;
        if (nms.offer(classes(ids[i]), get_box(boxes, i))) keep.push_back(i);
      }
    });
    return {std::move(keep), size.rows, candidates.idxs};
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  using namespace resobj;
  m.impl("batched_nms", TORCH_BOX((&host::batched_nms<Cpu, /*padded=*/false>)));
  m.impl("batched_nms_padded", TORCH_BOX((&host::batched_nms<Cpu, /*padded=*/true>)));
}
