"""Losses of box regression, summed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import reference
from ._checks import as_dtype, compute_dtype, require_dtype, require_floating, require_same_device
from ._library import define_op, no_backward


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
    "giou_loss(Tensor pred, Tensor target, Tensor? mask=None) -> Tensor",
    reference=reference.giou_loss,
    fake=_fake_giou,
    backward=_backward_giou,
    setup_context=_setup_giou,
)

_giou_loss_backward = define_op(
    "_giou_loss_backward(Tensor grad_loss, Tensor pred, Tensor target, Tensor? mask) -> Tensor",
    reference=reference.giou_loss_backward,
    fake=_fake_giou_backward,
    backward=no_backward("giou_loss can be differentiated once, not twice"),
)


def _fake_balanced(pred, target, alpha=0.5, gamma=1.5, beta=1.0):
    return pred.new_empty(())


def _setup_balanced(ctx, inputs, output):
    pred, target, *ctx.options = inputs
    ctx.save_for_backward(pred, target)


def _backward_balanced(ctx, grad_loss):
    grad_pred = _balanced_l1_loss_backward(grad_loss, *ctx.saved_tensors, *ctx.options)
    return grad_pred, None, None, None, None


def _fake_balanced_backward(grad_loss, pred, target, alpha, gamma, beta):
    return pred.new_empty(pred.shape)


_balanced_l1_loss = define_op(
    "balanced_l1_loss(Tensor pred, Tensor target, "
    "float alpha=0.5, float gamma=1.5, float beta=1.0) -> Tensor",
    reference=reference.balanced_l1_loss,
    fake=_fake_balanced,
    backward=_backward_balanced,
    setup_context=_setup_balanced,
)

_balanced_l1_loss_backward = define_op(
    "_balanced_l1_loss_backward(Tensor grad_loss, Tensor pred, Tensor target, "
    "float alpha, float gamma, float beta) -> Tensor",
    reference=reference.balanced_l1_loss_backward,
    fake=_fake_balanced_backward,
    backward=no_backward("balanced_l1_loss can be differentiated once, not twice"),
)


def giou_loss(
    pred: Tensor,  # (..., 4)
    target: Tensor,  # (..., 4)
    mask: Tensor | None = None,  # (...) bool
) -> Tensor:  # ()
    """Sum of ``1 - GIoU`` over pairs of boxes (Rezatofighi et al., CVPR 2019, Algorithm 1).

    ``GIoU = I / (U + 1e-7) - (C - U) / (C + 1e-7)`` with the areas of intersection, union and
    smallest enclosing box; so a pair of boxes without area has a loss of 1 (or 2, when they are
    apart), and every gradient is finite. The corners of each box are put in order first, so that a
    box whose corners have crossed is pulled back instead of having a negative area. Coordinates
    beyond 1e18 (float32) are scaled down, which GIoU does not notice.

    Args:
        pred: (..., 4) XYXY, floating point.
        target: (..., 4) XYXY in the same unit and on the same device. A constant: it must not
            require a gradient.
        mask: (...) bool, the pairs that count; all by default. A pair that does not count gives
            neither loss nor gradient, even if it is not finite. Elsewhere a NaN gives a NaN.

    Returns:
        Scalar in float64 if an input is float64, else float32; half precision is computed in
        float32 and its gradient comes back in half precision. It can be differentiated once.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape or a device is wrong, or ``target`` requires a gradient.
    """
    op = "giou_loss"
    _check_pair(op, pred, target)
    if pred.dim() == 0 or pred.shape[-1] != 4:
        raise ValueError(f"{op}: pred must have shape (..., 4), got {tuple(pred.shape)}")
    if mask is not None:
        require_dtype(op, torch.bool, mask=mask)
        if mask.shape != pred.shape[:-1]:
            raise ValueError(
                f"{op}: mask must have the shape of pred without the last dimension, "
                f"{tuple(pred.shape[:-1])}, got {tuple(mask.shape)}"
            )
        require_same_device(op, pred=pred, mask=mask)
    dtype = compute_dtype(pred, target)
    return _giou_loss(as_dtype(pred, dtype), as_dtype(target, dtype), mask)


def balanced_l1_loss(
    pred: Tensor,  # any shape
    target: Tensor,  # the same shape
    *,
    alpha: float = 0.5,
    gamma: float = 1.5,
    beta: float = 1.0,
) -> Tensor:  # ()
    """Sum of balanced L1 (Pang et al., Libra R-CNN, Eq. 8 and 9) over all elements.

    With ``u = |pred - target| / beta`` and ``b = exp(gamma / alpha) - 1`` it is ``beta`` times
    ``alpha / b (b u + 1) ln(b u + 1) - alpha u`` for u < 1 and ``gamma u + gamma / b - alpha``
    beyond; the slope ``alpha ln(b u + 1)``, at most ``gamma``, has no jump. The paper has
    ``beta = 1``; other values stretch the loss, unlike in mmdetection, whose slope jumps at 0
    then.

    Args:
        pred: floating point, for example (P, 4) encoded deltas of the foreground.
        target: the same shape and device. A constant: it must not require a gradient.
        alpha: how much small differences count; positive.
        gamma: slope from ``beta`` on; positive and at most 80 ``alpha``.
        beta: difference at which the loss becomes linear; positive.

    Returns:
        Scalar in float64 if an input is float64, else float32; half precision is computed in
        float32 and its gradient comes back in half precision. It can be differentiated once.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: a shape, a device or a number is wrong, or ``target`` requires a gradient.
    """
    op = "balanced_l1_loss"
    _check_pair(op, pred, target)
    for name, value in (("alpha", alpha), ("gamma", gamma), ("beta", beta)):
        if not 0 < value < math.inf:
            raise ValueError(f"{op}: {name} must be positive, got {value}")
    if gamma > 80 * alpha:
        raise ValueError(f"{op}: gamma must be at most 80 alpha, got {gamma} and alpha {alpha}")
    dtype = compute_dtype(pred, target)
    return _balanced_l1_loss(as_dtype(pred, dtype), as_dtype(target, dtype), alpha, gamma, beta)


def _check_pair(op: str, pred: Tensor, target: Tensor) -> None:
    usual = isinstance(pred, Tensor) and isinstance(target, Tensor) and target.dtype is pred.dtype
    if usual and pred.dtype is torch.float32 and pred.shape == target.shape:
        # Worth a branch: on a few hundred boxes checks take as long as the loss.
        if pred.device == target.device and not target.requires_grad:
            return
    require_floating(op, pred=pred, target=target)
    if target.shape != pred.shape:
        raise ValueError(
            f"{op}: target must have the shape of pred, {tuple(pred.shape)}, "
            f"got {tuple(target.shape)}"
        )
    require_same_device(op, pred=pred, target=target)
    if target.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{op}: target gets no gradient; pass target.detach()")
