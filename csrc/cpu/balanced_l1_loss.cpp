// balanced_l1_loss on the CPU. The arithmetic of a difference is one long chain: it is cut into
// three loops over a block, to have more vectors in flight.

#include <algorithm>

#include "loss_sum.h"
#include "resobj/balanced_l1_loss_host.h"

namespace resobj {
namespace {

constexpr int64_t kBlock = 256;

// Fills `terms` and `gradient`, as far as they are among the results; `scale` is the factor of the
// gradient.
template <Results results, typename T>
void fill_chunk(const BalancedInputs<T>& in, int64_t begin, int64_t end, T scale,
                T* __restrict__ terms, T* __restrict__ gradient) {
  const BalancedL1<T> loss = in.loss;
  const T* pred = in.pred + begin;
  const T* target = in.target + begin;
  alignas(64) T distances[kBlock];
  alignas(64) T powers[kBlock], rests[kBlock], logarithms[kBlock];
  for (int64_t first = 0; first < end - begin; first += kBlock) {
    const int64_t size = std::min(kBlock, end - begin - first);
    for (int64_t j = 0; j < size; ++j) {
      distances[j] = distance(pred[first + j] - target[first + j], loss);
      const SplitLogarithm<T> split = split_log1p(loss.b * distances[j]);
      powers[j] = split.power;
      rests[j] = split.rest;
    }
    for (int64_t j = 0; j < size; ++j) {
      logarithms[j] = join_log1p(SplitLogarithm<T>{powers[j], rests[j]});
    }
    for (int64_t j = 0; j < size; ++j) {
      const T u = distances[j];
      if (results != Results::kGradient) terms[first + j] = balanced_l1(u, logarithms[j], loss);
      if (results != Results::kLoss) {
        gradient[first + j] =
            scale * balanced_l1_slope(pred[first + j] - target[first + j], u, logarithms[j], loss);
      }
    }
  }
}

struct Cpu : CpuBackend {
  template <typename T>
  static void forward(const BalancedInputs<T>& in, int64_t count, Tensor& loss) {
    const auto fill = [=](int64_t begin, int64_t end, T* terms) {
      fill_chunk<Results::kLoss, T>(in, begin, end, T(1), terms, nullptr);
    };
    sum_terms<T>(count, fill, loss);
  }

  template <typename T>
  static void backward(const BalancedInputs<T>& in, int64_t count, const Tensor& grad_loss,
                       Tensor& grad_pred) {
    const T scale = *grad_loss.const_data_ptr<T>();
    T* out = grad_pred.mutable_data_ptr<T>();
    for_each_chunk(count, [=](int64_t begin, int64_t end) {
      fill_chunk<Results::kGradient, T>(in, begin, end, scale, nullptr, out + begin);
    });
  }

  template <typename T>
  static void forward_and_backward(const BalancedInputs<T>& in, int64_t count,
                                   const Tensor& grad_loss, Tensor& loss, Tensor& grad_pred) {
    const T scale = *grad_loss.const_data_ptr<T>();
    T* out = grad_pred.mutable_data_ptr<T>();
    const auto fill = [=](int64_t begin, int64_t end, T* terms) {
      fill_chunk<Results::kBoth, T>(in, begin, end, scale, terms, out + begin);
    };
    sum_terms<T>(count, fill, loss);
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  using namespace resobj;
  m.impl("balanced_l1_loss", TORCH_BOX(&host::balanced_l1_loss<Cpu>));
  m.impl("_balanced_l1_loss_backward", TORCH_BOX(&host::balanced_l1_loss_backward<Cpu>));
  m.impl("_balanced_l1_loss_with_gradient", TORCH_BOX(&host::balanced_l1_loss_with_gradient<Cpu>));
}
