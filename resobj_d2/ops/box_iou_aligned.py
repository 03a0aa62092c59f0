"""Overlap of boxes, pair by pair."""

from __future__ import annotations

from torch import Tensor

from . import reference
from ._checks import (
    as_dtype,
    compute_dtype,
    is_usual_pair,
    require_floating,
    require_same_device,
)
from ._library import define_op, no_backward

KINDS = ("iou", "giou", "diou", "ciou")
# Composed of the IoU and plain torch; the kernels compute the others.
COMPOSED = ("diou", "ciou")


def _fake_aligned(pred: Tensor, target: Tensor, kind: str = "iou") -> Tensor:
    return pred.new_empty(pred.shape[0])


def _setup_aligned(ctx, inputs, output):
    pred, target, ctx.kind = inputs
    ctx.save_for_backward(pred, target)


def _backward_aligned(ctx, grad):
    pred, target = ctx.saved_tensors
    grads = _box_iou_aligned_backward(grad, pred, target, ctx.kind)
    return *grads, None


def _fake_aligned_backward(grad, pred, target, kind):
    return pred.new_empty(pred.shape), pred.new_empty(pred.shape)


_box_iou_aligned = define_op(
    "box_iou_aligned",
    reference=reference.box_iou_aligned,
    fake=_fake_aligned,
    backward=_backward_aligned,
    setup_context=_setup_aligned,
)

_box_iou_aligned_backward = define_op(
    "_box_iou_aligned_backward",
    reference=reference.box_iou_aligned_backward,
    fake=_fake_aligned_backward,
    backward=no_backward("box_iou_aligned can be differentiated once, not twice"),
)


def box_iou_aligned(
    pred: Tensor,  # (P, 4)
    target: Tensor,  # (P, 4)
    kind: str = "iou",
) -> Tensor:  # (P,)
    """Overlap of each box of ``pred`` with the box at the same position in ``target``.

    The values are the diagonal of :func:`pairwise_box_iou`, which also defines them for boxes
    without area, with swapped corners or with a NaN. Gradients flow to both arguments; where a
    coordinate of both boxes is the same, each gets half of it. Values that do not depend on the
    boxes (0 for boxes that do not overlap, any box with a NaN) have a zero gradient. Gradients are
    finite whenever the incoming one is.

    Args:
        pred: (P, 4) XYXY, floating point.
        target: (P, 4) XYXY, same unit and device as ``pred``.
        kind: ``"iou"``, ``"giou"``, ``"diou"`` or ``"ciou"``. The alpha of CIoU is a constant of
            the gradient, as published.

    Returns:
        (P,) in float64 if an input is float64, else float32; half precision is computed in
        float32 and its gradients come back in half precision. It can be differentiated once.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: a shape, a device or ``kind`` is wrong.
    """
    op = "box_iou_aligned"
    is_usual = is_usual_pair(pred, target)
    if not is_usual:
        require_floating(op, pred=pred, target=target)
    if pred.dim() != 2 or pred.shape[1] != 4:
        raise ValueError(f"{op}: pred must have shape (number, 4), got {tuple(pred.shape)}")
    if not is_usual:
        if target.shape != pred.shape:
            raise ValueError(
                f"{op}: target must have the shape of pred, {tuple(pred.shape)}, "
                f"got {tuple(target.shape)}"
            )
        require_same_device(op, pred=pred, target=target)
        dtype = compute_dtype(pred, target)
        pred, target = as_dtype(pred, dtype), as_dtype(target, dtype)
    if kind not in KINDS:
        raise ValueError(f"{op}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind in COMPOSED:
        return reference.distance_overlap(
            pred, target, kind, lambda *boxes: _box_iou_aligned(*boxes, "iou")
        )
    return _box_iou_aligned(pred, target, kind)
