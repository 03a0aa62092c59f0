"""The generalized IoU loss."""

from __future__ import annotations

from torch import Tensor

from . import reference
from ._checks import as_dtype, compute_dtype, require_box_pairs
from ._library import define_op, no_backward
from ._one_pass import define_one_pass_of_sum
from ._reduction import check_reduction, is_plain_sum, reduce_terms


def _fake_giou(pred, target, mask=None):
    return pred.new_empty(())


def _setup_giou(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward_giou(ctx, grad_loss):
    grad_pred = _giou_loss_backward(grad_loss, *ctx.saved_tensors)
    return grad_pred, None, None


def _fake_giou_backward(grad_loss, pred, target, mask):
    return pred.new_empty(pred.shape)


_giou_loss = define_op(
    "giou_loss",
    reference=reference.giou_loss,
    fake=_fake_giou,
    backward=_backward_giou,
    setup_context=_setup_giou,
    constants=("target",),
)

_giou_loss_backward = define_op(
    "_giou_loss_backward",
    reference=reference.giou_loss_backward,
    fake=_fake_giou_backward,
    backward=no_backward("giou_loss can be differentiated once, not twice"),
)


_one_pass = define_one_pass_of_sum(
    "giou_loss",
    _giou_loss,
    loss=reference.giou_loss,
    gradient=reference.giou_loss_backward,
    backward=_backward_giou,
    setup_context=_setup_giou,
)


def giou_loss(
    pred: Tensor,  # (..., 4)
    target: Tensor,  # (..., 4)
    mask: Tensor | None = None,  # (...) bool
    *,
    weight: Tensor | None = None,  # broadcasts to (...)
    reduction: str = "sum",
) -> Tensor:  # (), or (...) for "none"
    """``1 - GIoU``, summed over pairs of boxes (Rezatofighi et al., CVPR 2019, Algorithm 1).

    ``GIoU = I / (U + 1e-7) - (C - U) / (C + 1e-7)`` with the areas of intersection, union and
    smallest enclosing box. A pair of boxes without area thus has a loss of 1 (or 2 if they are
    apart), and every gradient is finite. The corners of each box are sorted first, so that a box
    with swapped corners is pulled back instead of having a negative area. Coordinates beyond 1e18
    (float32) are scaled down, which does not change GIoU.

    Args:
        pred: (..., 4) XYXY, floating point.
        target: (..., 4) XYXY, same unit and device as ``pred``; must not require a gradient.
        mask: (...) bool, the pairs that count; default all. Pairs outside the mask contribute
            neither loss nor gradient, even if they are not finite; a NaN inside it makes the loss
            NaN.
        weight: factor of each pair's loss, floating point; default 1. May carry a gradient.
        reduction: ``"sum"``; ``"mean"``: the sum divided by the number of pairs that count,
            whatever their weights, and 0 if there are none; ``"none"``: the loss of each pair, 0
            outside the mask. The sum without a weight, and with it the mean, is a kernel's; the
            rest is composed of plain torch operators, as fast as torchvision's loss.

    Returns:
        Scalar, or (...) for ``"none"``, in float64 if an input is float64, else float32; half
        precision is computed in float32 and its gradient comes back in half precision. The
        kernel's sum can be differentiated once.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape, a device or ``reduction`` is wrong, or ``target`` requires a gradient.
    """
    op = "giou_loss"
    require_box_pairs(op, pred, target, mask)
    is_plain = is_plain_sum(reduction, weight)
    if not is_plain:
        check_reduction(op, reduction, weight, pred.shape[:-1], pred)
    dtype = compute_dtype(weight, pred, target)
    pred, target = as_dtype(pred, dtype), as_dtype(target, dtype)
    if is_plain:
        return _one_pass(pred, target, mask)
    return reduce_terms(
        lambda: reference.elementwise_box_loss(pred, target, mask, "giou"),
        lambda: _giou_loss(pred, target, mask),
        pred.shape[:-1],
        mask,
        weight,
        reduction,
    )
