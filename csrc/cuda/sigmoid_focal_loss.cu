// sigmoid_focal_loss on CUDA: one thread per logit, two launches for the sum, one for the gradient.

#include <optional>

#include "loss_sum.h"
#include "resobj/sigmoid_focal_loss_checks.h"

namespace resobj {
namespace {

enum class Target { kNothing, kAbsent, kPresent };

// What the logit begin + offset stands for. 64-bit division is slow; the one here is by a block.
template <typename T>
__device__ Target target_of(const FocalInputs<T>& in, int64_t begin, int offset) {
  const int64_t first = begin / in.num_classes;
  const unsigned position = static_cast<unsigned>(begin - first * in.num_classes) + offset;
  const unsigned num_classes = static_cast<unsigned>(in.num_classes);
  const int64_t anchor = first + position / num_classes;
  if (!in.counts(anchor)) return Target::kNothing;
  return in.labels[anchor] == position % num_classes ? Target::kPresent : Target::kAbsent;
}

template <Focus focus, typename T>
struct Term {
  FocalInputs<T> in;

  __device__ T operator()(int64_t begin, int offset) const {
    const Target target = target_of(in, begin, offset);
    if (target == Target::kNothing) return T(0);
    const T x = in.logits[begin + offset];
    const bool present = target == Target::kPresent;
    const T weight = present ? in.positive_weight : in.negative_weight;
    return weight * focal_loss<focus>(present ? -x : x, in.gamma);
  }
};

template <Focus focus, typename T>
struct Gradient {
  FocalInputs<T> in;
  const T* grad_loss;
  T* grad_logits;

  __device__ void operator()(int64_t begin, int offset) const {
    const Target target = target_of(in, begin, offset);
    T gradient = T(0);
    if (target != Target::kNothing) {
      const T x = in.logits[begin + offset];
      const bool present = target == Target::kPresent;
      const T weight = present ? -in.positive_weight : in.negative_weight;
      gradient = weight * *grad_loss * focal_slope<focus>(present ? -x : x, in.gamma);
    }
    grad_logits[begin + offset] = gradient;
  }
};

Tensor sigmoid_focal_loss(const Tensor& logits, const Tensor& labels, std::optional<Tensor> mask,
                          double alpha, double gamma) {
  const FocalArguments arguments(logits, labels, mask, alpha, gamma);
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  Tensor loss = new_tensor(logits, {});
  dispatch_focal(arguments, [&](const auto& in, auto focus) {
    using T = std::decay_t<decltype(in.gamma)>;
    sum_terms<T>(logits.numel(), Term<focus(), T>{in}, loss);
  });
  return loss;
}

Tensor sigmoid_focal_loss_backward(const Tensor& grad_loss, const Tensor& logits,
                                   const Tensor& labels, std::optional<Tensor> mask, double alpha,
                                   double gamma) {
  const FocalArguments arguments(logits, labels, mask, alpha, gamma);
  check_grad_loss(kFocalOp, grad_loss, {"logits", logits});
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  Tensor grad_logits = new_tensor(logits, logits.sizes());
  dispatch_focal(arguments, [&](const auto& in, auto focus) {
    using T = std::decay_t<decltype(in.gamma)>;
    const Gradient<focus(), T> gradient{in, grad_loss.const_data_ptr<T>(),
                                        grad_logits.mutable_data_ptr<T>()};
    for_each(logits.numel(), gradient, grad_logits);
  });
  return grad_logits;
}

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CUDA, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&resobj::sigmoid_focal_loss));
  m.impl("_sigmoid_focal_loss_backward", TORCH_BOX(&resobj::sigmoid_focal_loss_backward));
}
