// pairwise_box_iou on the CPU: columns are cut into blocks that stay in the L1 cache as separate
// coordinate arrays, rows run over them, so the inner loop is one vector per coordinate.

#include <algorithm>
#include <string>

#include "instruction_sets.h"
#include "resobj/box_checks.h"
#include "resobj/box_math.h"

namespace resobj {
namespace {

constexpr int64_t kColumns = 1024;
constexpr int64_t kPairsPerTask = 32768;

template <typename T>
struct ColumnBlock {
  T x1[kColumns], y1[kColumns], x2[kColumns], y2[kColumns], area[kColumns];

  void load(const T* boxes, int64_t count) {
    for (int64_t j = 0; j < count; ++j) {
      const Box<T> box{boxes[4 * j], boxes[4 * j + 1], boxes[4 * j + 2], boxes[4 * j + 3]};
      x1[j] = box.x1;
      y1[j] = box.y1;
      x2[j] = box.x2;
      y2[j] = box.y2;
      area[j] = resobj::area(box);
    }
  }
};

template <Overlap kind, typename T>
void fill_row(const T* box1, const ColumnBlock<T>& block, int64_t count, T* __restrict__ out) {
  const Box<T> a{box1[0], box1[1], box1[2], box1[3]};
  const T area_a = area(a);
  for (int64_t j = 0; j < count; ++j) {
    const Box<T> b{block.x1[j], block.y1[j], block.x2[j], block.y2[j]};
    out[j] = overlap<kind>(a, area_a, b, block.area[j]);
  }
}

template <Overlap kind, typename T>
void fill(const T* boxes1, int64_t rows, const T* boxes2, int64_t columns, T* out) {
  const int64_t rows_per_task =
      std::max<int64_t>(1, kPairsPerTask / std::max<int64_t>(1, std::min(columns, kColumns)));
  const int64_t row_tasks = ceil_div(rows, rows_per_task);
  const int64_t column_tasks = ceil_div(columns, kColumns);
  torch::stable::parallel_for(0, row_tasks * column_tasks, 1, [&](int64_t begin, int64_t end) {
    run_vectorized([&] {
      ColumnBlock<T> block;
      int64_t loaded = -1;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t column_task = task / row_tasks;
        const int64_t first_column = column_task * kColumns;
        const int64_t count = std::min(kColumns, columns - first_column);
        if (column_task != loaded) block.load(boxes2 + 4 * first_column, count);
        loaded = column_task;
        const int64_t first_row = (task - column_task * row_tasks) * rows_per_task;
        const int64_t last_row = std::min(rows, first_row + rows_per_task);
        for (int64_t i = first_row; i < last_row; ++i) {
          fill_row<kind>(boxes1 + 4 * i, block, count, out + i * columns + first_column);
        }
      }
    });
  });
}

void write_overlaps(const Tensor& boxes1, const Tensor& boxes2, const std::string& kind,
                    Tensor& result) {
  const Overlap overlap_kind = parse_overlap("pairwise_box_iou", kind);
  const Tensor a = torch::stable::contiguous(boxes1);
  const Tensor b = torch::stable::contiguous(boxes2);
  const int64_t rows = a.size(0);
  const int64_t columns = b.size(0);
  dispatch_float(a, [&](auto scalar) {
    using T = decltype(scalar);
    const T* first = a.const_data_ptr<T>();
    const T* second = b.const_data_ptr<T>();
    T* out = result.mutable_data_ptr<T>();
    switch (overlap_kind) {
      case Overlap::kIou:
        return fill<Overlap::kIou>(first, rows, second, columns, out);
      case Overlap::kGiou:
        return fill<Overlap::kGiou>(first, rows, second, columns, out);
      case Overlap::kIof:
        return fill<Overlap::kIof>(first, rows, second, columns, out);
    }
  });
}

Tensor pairwise_box_iou(const Tensor& boxes1, const Tensor& boxes2, const std::string& kind) {
  check_boxes("pairwise_box_iou", {{"boxes1", boxes1}, {"boxes2", boxes2}});
  Tensor result = new_tensor(boxes1, {boxes1.size(0), boxes2.size(0)});
  write_overlaps(boxes1, boxes2, kind, result);
  return result;
}

void pairwise_box_iou_out(const Tensor& boxes1, const Tensor& boxes2, const std::string& kind,
                          Tensor out) {
  check_boxes("pairwise_box_iou", {{"boxes1", boxes1}, {"boxes2", boxes2}});
  check_overlap_out(boxes1, boxes2, out);
  write_overlaps(boxes1, boxes2, kind, out);
}

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  m.impl("pairwise_box_iou", TORCH_BOX(&resobj::pairwise_box_iou));
  m.impl("_pairwise_box_iou_out", TORCH_BOX(&resobj::pairwise_box_iou_out));
}
