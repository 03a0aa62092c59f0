"""Focal loss over independent sigmoids, from integer labels."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._checks import as_dtype, compute_dtype, require_dtype, require_floating, require_same_device
from ._library import define_op, no_backward

MAX_GAMMA = 1000


def _fake(logits, labels, mask=None, alpha=0.25, gamma=2.0):
    return logits.new_empty(())


def _setup_context(ctx, inputs, output):
    logits, labels, mask, ctx.alpha, ctx.gamma = inputs
    ctx.save_for_backward(logits, labels, mask)


def _backward(ctx, grad_loss):
    # Slopes are recomputed rather than saved: the forward then holds no second tensor as large as
    # the logits, and recomputing takes less memory traffic than scaling saved slopes.
    grad_logits = _sigmoid_focal_loss_backward(grad_loss, *ctx.saved_tensors, ctx.alpha, ctx.gamma)
    return grad_logits, None, None, None, None


def _fake_backward(grad_loss, logits, labels, mask, alpha, gamma):
    return logits.new_empty(logits.shape)


_sigmoid_focal_loss = define_op(
    "sigmoid_focal_loss(Tensor logits, Tensor labels, Tensor? mask=None, "
    "float alpha=0.25, float gamma=2.0) -> Tensor",
    reference=reference.sigmoid_focal_loss,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)

_sigmoid_focal_loss_backward = define_op(
    "_sigmoid_focal_loss_backward(Tensor grad_loss, Tensor logits, Tensor labels, Tensor? mask, "
    "float alpha, float gamma) -> Tensor",
    reference=reference.sigmoid_focal_loss_backward,
    fake=_fake_backward,
    backward=no_backward("sigmoid_focal_loss can be differentiated once, not twice"),
)


def sigmoid_focal_loss(
    logits: Tensor,  # (..., K)
    labels: Tensor,  # (...) int64
    mask: Tensor | None = None,  # (...) bool
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:  # ()
    """Sum of the focal loss, ``-a_t (1 - p_t)^gamma log p_t`` (Lin et al., RetinaNet, Eq. 5).

    No one-hot target is formed; the largest allocation is the gradient.

    Args:
        logits: (..., K), one logit per class.
        labels: (...) int64. A value in [0, K) is the anchor's class; K or more is background (all
            classes are negative); a negative value means ignored.
        mask: (...) bool, the anchors that count; default all. Anchors outside the mask contribute
            neither loss nor gradient, even if their logits are not finite.
        alpha: weight of the positive class, with ``1 - alpha`` for the others; at most 1. A
            negative value disables the weighting.
        gamma: focusing exponent, 0 to 1000; 0 gives (weighted) binary cross entropy.

    Returns:
        Scalar in float64 if ``logits`` is float64, else float32; half precision is computed in
        float32 and its gradient comes back in half precision. It can be differentiated once.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape, a device, ``alpha`` or ``gamma`` is wrong.
    """
    op = "sigmoid_focal_loss"
    require_floating(op, logits=logits)
    require_dtype(op, torch.int64, labels=labels)
    of_anchors = {"labels": labels}
    if mask is not None:
        require_dtype(op, torch.bool, mask=mask)
        of_anchors["mask"] = mask
    if logits.dim() == 0:
        raise ValueError(f"{op}: logits must have shape (..., classes), got a scalar")
    for name, value in of_anchors.items():
        if value.shape != logits.shape[:-1]:
            raise ValueError(
                f"{op}: {name} must have the shape of logits without the classes, "
                f"{tuple(logits.shape[:-1])}, got {tuple(value.shape)}"
            )
    require_same_device(op, logits=logits, **of_anchors)
    if not alpha <= 1:
        raise ValueError(f"{op}: alpha must be at most 1 (negative: no weighting), got {alpha}")
    if not gamma >= 0:
        raise ValueError(f"{op}: gamma must be at least 0, got {gamma}")
    if gamma > MAX_GAMMA:
        raise ValueError(f"{op}: gamma must be at most {MAX_GAMMA}, got {gamma}")
    logits = as_dtype(logits, compute_dtype(logits))
    return _sigmoid_focal_loss(logits, labels, mask, alpha, gamma)
