// box_iou_aligned on the host, shared by both backends. A backend has
//   forward<kind, T>(arguments, result)
//   backward<kind, T>(arguments, grad, grad_pred, grad_target)
#pragma once

#include <string>
#include <tuple>

#include "resobj/box_checks.h"
#include "resobj/box_iou_aligned_math.h"

namespace resobj {

constexpr const char* kAlignedOp = "box_iou_aligned";

// The arguments of box_iou_aligned, checked and contiguous.
struct AlignedArguments {
  Tensor pred;
  Tensor target;
  bool giou;  // else IoU

  AlignedArguments(const Tensor& p, const Tensor& t, const std::string& kind) {
    check_boxes(kAlignedOp, {{"pred", p}, {"target", t}});
    check_same_shape(kAlignedOp, {"target", t}, {"pred", p});
    STD_TORCH_CHECK(kind == "iou" || kind == "giou", kAlignedOp, ": unknown kind ", kind);
    pred = as_contiguous(p);
    target = as_contiguous(t);
    giou = kind == "giou";
  }

  int64_t count() const { return pred.size(0); }

  // The incoming gradient, checked and contiguous.
  Tensor gradient(const Tensor& grad) const {
    check_devices(kAlignedOp, {{"pred", pred}, {"grad", grad}});
    check_dtypes(kAlignedOp, {{"pred", pred}, {"grad", grad}});
    check_one_per_row(kAlignedOp, {"grad", grad}, {"pred", pred});
    return as_contiguous(grad);
  }
};

namespace host {

template <typename Backend>
Tensor box_iou_aligned(const Tensor& pred, const Tensor& target, const std::string& kind) {
  const AlignedArguments arguments(pred, target, kind);
  const typename Backend::DeviceGuard guard(pred);
  Tensor result = new_tensor(pred, {arguments.count()});
  dispatch_float(pred, [&](auto scalar) {
    using T = decltype(scalar);
    if (arguments.giou) return Backend::template forward<Overlap::kGiou, T>(arguments, result);
    Backend::template forward<Overlap::kIou, T>(arguments, result);
  });
  return result;
}

template <typename Backend>
std::tuple<Tensor, Tensor> box_iou_aligned_backward(const Tensor& grad, const Tensor& pred,
                                                    const Tensor& target, const std::string& kind) {
  const AlignedArguments arguments(pred, target, kind);
  const Tensor g = arguments.gradient(grad);
  const typename Backend::DeviceGuard guard(pred);
  Tensor grad_pred = new_tensor(pred, pred.sizes());
  Tensor grad_target = new_tensor(pred, pred.sizes());
  dispatch_float(pred, [&](auto scalar) {
    using T = decltype(scalar);
    if (arguments.giou) {
      return Backend::template backward<Overlap::kGiou, T>(arguments, g, grad_pred, grad_target);
    }
    Backend::template backward<Overlap::kIou, T>(arguments, g, grad_pred, grad_target);
  });
  return {grad_pred, grad_target};
}

}  // namespace host
}  // namespace resobj
