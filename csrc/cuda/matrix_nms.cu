// matrix_nms on CUDA: one thread per box visits the better boxes of its class, once for the highest
// IoU of each box and, in a second kernel, which needs that of all better boxes, for the decay.

#include "class_groups.h"

namespace resobj {
namespace {

// Calls visit(position, IoU) for the boxes of the class before position p, which have higher
// scores.
template <typename T, typename Visit>
__device__ void for_each_better(const GroupedBoxes<T>& boxes, int64_t p, const Visit& visit) {
  const Box<T> own = boxes.box(p);
  const T own_area = area(own);
  for (int64_t i = p - 1; i >= 0 && boxes.classes[i] == boxes.classes[p]; --i) {
    // NaN scores come first: such a box is dropped, and so are all before it.
    if (boxes.scores[i] != boxes.scores[i]) return;
    const Box<T> better = boxes.box(i);
    visit(i, overlap<Overlap::kIou>(better, area(better), own, own_area));
  }
}

template <typename T>
__global__ void highest_kernel(GroupedBoxes<T> boxes, T* highest) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (p >= boxes.count) return;
  T value = T(0);
  for_each_better(boxes, p, [&](int64_t, T iou) { value = larger(value, iou); });
  highest[p] = value;
}

template <typename T>
__global__ void decay_kernel(GroupedBoxes<T> boxes, MatrixRule<T> rule, const T* highest, T* out) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (p >= boxes.count) return;
  T strength = T(0);
  for_each_better(boxes, p, [&](int64_t i, T iou) {
    strength = larger(strength, rule.strength(iou, highest[i]));
  });
  const T score = boxes.scores[p];
  out[boxes.index(p)] = score == score ? score * rule.factor(strength) : T(0);
}

struct Cuda : CudaBackend {
  template <typename T>
  static void decay(const Candidates& candidates, const MatrixRule<T>& rule, Tensor& result) {
    if (candidates.count() == 0) return;
    const cudaStream_t stream = current_stream(result);
    const ClassGroups<T> groups(candidates, /*finite_only=*/true, stream);
    Tensor highest = torch::stable::new_empty(candidates.scores, {candidates.count()});
    const unsigned blocks = blocks_for(candidates.count());
    highest_kernel<T><<<blocks, kBlock, 0, stream>>>(groups.boxes(), highest.mutable_data_ptr<T>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    decay_kernel<T><<<blocks, kBlock, 0, stream>>>(
        groups.boxes(), rule, highest.const_data_ptr<T>(), result.mutable_data_ptr<T>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CUDA, m) {
  using namespace resobj;
  m.impl("matrix_nms", TORCH_BOX(&host::matrix_nms<Cuda>));
}
