// pairwise_box_iou on the host, shared by both backends. A backend has
//   fill<kind, T>(boxes1, boxes2, out)   with contiguous tensors
#pragma once

#include <string>
#include <type_traits>

#include "resobj/box_checks.h"

namespace resobj {

constexpr const char* kPairwiseOp = "pairwise_box_iou";

// Calls f(kind), where kind() is a constant that can be a template argument.
template <typename F>
void dispatch_overlap(const std::string& kind, const F& f) {
  if (kind == "iou") return f(std::integral_constant<Overlap, Overlap::kIou>());
  if (kind == "giou") return f(std::integral_constant<Overlap, Overlap::kGiou>());
  STD_TORCH_CHECK(kind == "iof", kPairwiseOp, ": unknown kind ", kind);
  f(std::integral_constant<Overlap, Overlap::kIof>());
}

// The tensor that pairwise_box_iou writes to.
inline void check_overlap_out(const Tensor& boxes1, const Tensor& boxes2, const Tensor& out) {
  check_devices(kPairwiseOp, {{"boxes1", boxes1}, {"out", out}});
  check_dtypes(kPairwiseOp, {{"boxes1", boxes1}, {"out", out}});
  const bool fits =
      out.dim() == 2 && out.size(0) == boxes1.size(0) && out.size(1) == boxes2.size(0);
  STD_TORCH_CHECK(fits && out.is_contiguous(), kPairwiseOp,
                  ": out must be contiguous, with a row for each box of boxes1 and a column for "
                  "each of boxes2");
}

namespace host {

template <typename Backend>
void write_overlaps(const Tensor& boxes1, const Tensor& boxes2, const std::string& kind,
                    Tensor& out) {
  const typename Backend::DeviceGuard guard(boxes1);
  const Tensor a = torch::stable::contiguous(boxes1);
  const Tensor b = torch::stable::contiguous(boxes2);
  dispatch_float(a, [&](auto scalar) {
    using T = decltype(scalar);
    dispatch_overlap(kind,
                     [&](auto constant) { Backend::template fill<constant(), T>(a, b, out); });
  });
}

template <typename Backend>
Tensor pairwise_box_iou(const Tensor& boxes1, const Tensor& boxes2, const std::string& kind) {
  check_boxes(kPairwiseOp, {{"boxes1", boxes1}, {"boxes2", boxes2}});
  Tensor result = new_tensor(boxes1, {boxes1.size(0), boxes2.size(0)});
  write_overlaps<Backend>(boxes1, boxes2, kind, result);
  return result;
}

template <typename Backend>
void pairwise_box_iou_out(const Tensor& boxes1, const Tensor& boxes2, const std::string& kind,
                          Tensor out) {
  check_boxes(kPairwiseOp, {{"boxes1", boxes1}, {"boxes2", boxes2}});
  check_overlap_out(boxes1, boxes2, out);
  write_overlaps<Backend>(boxes1, boxes2, kind, out);
}

}  // namespace host
}  // namespace resobj
