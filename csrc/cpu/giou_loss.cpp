// giou_loss on the CPU. A chunk is computed as if every pair counted, in one loop without a branch;
// then the pairs outside the mask are set to zero.

#include <algorithm>

#include "loss_sum.h"
#include "resobj/box_loss_checks.h"

namespace resobj {
namespace {

bool any(const bool* mask, int64_t begin, int64_t end) {
  return mask == nullptr || std::find(mask + begin, mask + end, true) != mask + end;
}

template <typename T>
double forward(const GiouInputs<T>& in, int64_t count) {
  return sum_terms<T>(count, [=](int64_t begin, int64_t end, T* __restrict__ terms) {
    if (!any(in.mask, begin, end)) return std::fill(terms, terms + (end - begin), T(0));
    for (int64_t i = begin; i < end; ++i) {
      terms[i - begin] = giou_loss(get_box(in.pred, i), get_box(in.target, i));
    }
    if (in.mask == nullptr) return;
    for (int64_t i = begin; i < end; ++i) {
      if (!in.mask[i]) terms[i - begin] = T(0);
    }
  });
}

template <typename T>
void backward(const GiouInputs<T>& in, int64_t count, T grad_loss, T* __restrict__ grad_pred) {
  for_each_chunk(count, [=](int64_t begin, int64_t end) {
    if (!any(in.mask, begin, end))
      return std::fill(grad_pred + 4 * begin, grad_pred + 4 * end, T(0));
    for (int64_t i = begin; i < end; ++i) {
      const Box<T> gradient =
          giou_loss_gradient(get_box(in.pred, i), get_box(in.target, i), grad_loss);
      set_box(grad_pred, i, gradient);
    }
    if (in.mask == nullptr) return;
    for (int64_t i = begin; i < end; ++i) {
      if (!in.mask[i]) set_box(grad_pred, i, Box<T>{});
    }
  });
}

Tensor giou_loss_sum(const Tensor& pred, const Tensor& target, std::optional<Tensor> mask) {
  const GiouArguments arguments(pred, target, mask);
  Tensor loss = new_tensor(pred, {});
  dispatch_float(pred, [&](auto scalar) {
    using T = decltype(scalar);
    *loss.mutable_data_ptr<T>() = static_cast<T>(forward(arguments.inputs<T>(), arguments.count()));
  });
  return loss;
}

Tensor giou_loss_backward(const Tensor& grad_loss, const Tensor& pred, const Tensor& target,
                          std::optional<Tensor> mask) {
  const GiouArguments arguments(pred, target, mask);
  check_grad_loss(kGiouOp, grad_loss, {"pred", pred});
  Tensor grad_pred = new_tensor(pred, pred.sizes());
  dispatch_float(pred, [&](auto scalar) {
    using T = decltype(scalar);
    backward(arguments.inputs<T>(), arguments.count(), *grad_loss.const_data_ptr<T>(),
             grad_pred.mutable_data_ptr<T>());
  });
  return grad_pred;
}

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  m.impl("giou_loss", TORCH_BOX(&resobj::giou_loss_sum));
  m.impl("_giou_loss_backward", TORCH_BOX(&resobj::giou_loss_backward));
}
