// pairwise_box_iou on the CPU: columns are cut into blocks that stay in the L1 cache as separate
// coordinate arrays, and rows run over them, so the inner loop has one vector per coordinate.

#include <algorithm>

#include "cpu_backend.h"
#include "instruction_sets.h"
#include "resobj/pairwise_box_iou_host.h"
#include "streaming.h"

namespace resobj {
namespace {

constexpr int64_t kColumns = 1024;
constexpr int64_t kPairsPerTask = 32768;

template <Overlap kind, typename T>
struct ColumnBlock {
  alignas(64) T x1[kColumns], y1[kColumns], x2[kColumns], y2[kColumns], area[kColumns];

  void load(const T* boxes, int64_t count) {
    for (int64_t j = 0; j < count; ++j) {
      const Box<T> box = corners_for<kind>(get_box(boxes, j));
      x1[j] = box.x1;
      y1[j] = box.y1;
      x2[j] = box.x2;
      y2[j] = box.y2;
      area[j] = resobj::area(box);
    }
  }
};

template <Overlap kind, typename T>
void fill_row(const Box<T>& a, const ColumnBlock<kind, T>& block, int64_t count,
              T* __restrict__ out) {
  const T area_a = area(a);
  for (int64_t j = 0; j < count; ++j) {
    const Box<T> b{block.x1[j], block.y1[j], block.x2[j], block.y2[j]};
    out[j] = overlap<kind>(a, area_a, b, block.area[j]);
  }
}

// The same, past the cache.
template <Overlap kind, typename T>
void stream_row(const Box<T>& a, const ColumnBlock<kind, T>& block, int64_t count, T* out) {
  alignas(64) T row[kColumns];
  fill_row<kind>(a, block, count, row);
  stream(row, count, out);
}

struct Cpu : CpuBackend {
  template <Overlap kind, typename T>
  static void fill(const Tensor& first, const Tensor& second, Tensor& result) {
    const T* boxes1 = first.const_data_ptr<T>();
    const T* boxes2 = second.const_data_ptr<T>();
    T* out = result.mutable_data_ptr<T>();
    const int64_t rows = first.size(0);
    const int64_t columns = second.size(0);
    const int64_t rows_per_task =
        std::max<int64_t>(1, kPairsPerTask / std::max<int64_t>(1, std::min(columns, kColumns)));
    const int64_t row_tasks = ceil_div(rows, rows_per_task);
    const int64_t column_tasks = ceil_div(columns, kColumns);
    // A task writes parts of rows, in distant pages. Whole short rows are not faster streamed.
    const bool streamed = columns > kColumns && rows * columns * int64_t(sizeof(T)) > kBeyondCache;
    torch::stable::parallel_for(0, row_tasks * column_tasks, 1, [&](int64_t begin, int64_t end) {
      run_vectorized([&] {
        ColumnBlock<kind, T> block;
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
            const Box<T> box = corners_for<kind>(get_box(boxes1, i));
            T* part = out + i * columns + first_column;
            if (streamed) {
              stream_row<kind>(box, block, count, part);
            } else {
              fill_row<kind>(box, block, count, part);
            }
          }
        }
        if (streamed) streaming_done();
      });
    });
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  using namespace resobj;
  m.impl("pairwise_box_iou", TORCH_BOX(&host::pairwise_box_iou<Cpu>));
  m.impl("_pairwise_box_iou_out", TORCH_BOX(&host::pairwise_box_iou_out<Cpu>));
}
