// pairwise_box_iou on CUDA: one thread per column walks down a tile of rows, so writes are
// coalesced and a whole warp reads the same row box.

#include "cuda_utils.h"
#include "resobj/pairwise_box_iou_host.h"

namespace resobj {
namespace {

constexpr int64_t kRowTile = 32;
constexpr int64_t kMaxGridY = 65535;

template <Overlap kind, typename T>
__global__ void overlap_kernel(const T* __restrict__ boxes1, const T* __restrict__ boxes2,
                               T* __restrict__ out, int64_t rows, int64_t columns) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  const Box<T> b = corners_for<kind>(get_box(boxes2, column));
  const T area_b = area(b);
  const int64_t tiles = ceil_div(rows, kRowTile);
  for (int64_t tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
    const int64_t end = smaller((tile + 1) * kRowTile, rows);
    for (int64_t row = tile * kRowTile + threadIdx.y; row < end; row += blockDim.y) {
      const Box<T> a = corners_for<kind>(get_box(boxes1, row));
      out[row * columns + column] = overlap<kind>(a, area(a), b, area_b);
    }
  }
}

struct Cuda : CudaBackend {
  template <Overlap kind, typename T>
  static void fill(const Tensor& boxes1, const Tensor& boxes2, Tensor& out) {
    const int64_t rows = boxes1.size(0);
    const int64_t columns = boxes2.size(0);
    if (rows == 0 || columns == 0) return;
    // Few columns: a block covers several rows at a time so that no threads are idle.
    const int width = columns > kBlock / 2 ? kBlock : kWarp;
    const dim3 block(width, kBlock / width);
    const dim3 grid(static_cast<unsigned>(ceil_div(columns, width)),
                    static_cast<unsigned>(smaller(ceil_div(rows, kRowTile), kMaxGridY)));
    overlap_kernel<kind, T><<<grid, block, 0, current_stream(out)>>>(
        boxes1.const_data_ptr<T>(), boxes2.const_data_ptr<T>(), out.mutable_data_ptr<T>(), rows,
        columns);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CUDA, m) {
  using namespace resobj;
  m.impl("pairwise_box_iou", TORCH_BOX(&host::pairwise_box_iou<Cuda>));
  m.impl("_pairwise_box_iou_out", TORCH_BOX(&host::pairwise_box_iou_out<Cuda>));
}
