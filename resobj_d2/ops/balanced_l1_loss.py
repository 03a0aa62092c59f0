"""Balanced L1."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._checks import (
    LIMITS,
    as_dtype,
    compute_dtype,
    is_usual_pair,
    require_constant_target,
    require_positive,
)
from ._library import define_op, no_backward
from ._one_pass import define_one_pass_of_sum
from ._reduction import check_reduction, is_plain_sum, reduce_terms


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
    "balanced_l1_loss",
    reference=reference.balanced_l1_loss,
    fake=_fake_balanced,
    backward=_backward_balanced,
    setup_context=_setup_balanced,
    constants=("target",),
)

_balanced_l1_loss_backward = define_op(
    "_balanced_l1_loss_backward",
    reference=reference.balanced_l1_loss_backward,
    fake=_fake_balanced_backward,
    backward=no_backward("balanced_l1_loss can be differentiated once, not twice"),
)


_one_pass = define_one_pass_of_sum(
    "balanced_l1_loss",
    _balanced_l1_loss,
    loss=reference.balanced_l1_loss,
    gradient=reference.balanced_l1_loss_backward,
    backward=_backward_balanced,
    setup_context=_setup_balanced,
)


def balanced_l1_loss(
    pred: Tensor,  # any shape
    target: Tensor,  # the same shape
    *,
    alpha: float = 0.5,
    gamma: float = 1.5,
    beta: float = 1.0,
    weight: Tensor | None = None,  # broadcasts to pred
    reduction: str = "sum",
) -> Tensor:  # (), or the shape of pred for "none"
    """Balanced L1 (Pang et al., Libra R-CNN, Eq. 8 and 9), summed over all elements.

    With ``u = |pred - target| / beta`` and ``b = exp(gamma / alpha) - 1``, the loss is ``beta``
    times ``alpha / b (b u + 1) ln(b u + 1) - alpha u`` for u < 1, and ``beta`` times
    ``gamma u + gamma / b - alpha`` beyond. Its slope ``alpha ln(b u + 1)``, at most ``gamma``, is
    continuous. The paper uses ``beta = 1``; other values stretch the loss. (In mmdetection, other
    values make the slope jump at 0.)

    Args:
        pred: floating point, for example (P, 4) encoded deltas of foreground anchors.
        target: same shape and device; must not require a gradient.
        alpha: weight of small differences; positive.
        gamma: slope for differences of ``beta`` or more; at least ``alpha / 1000``
            and at most 80 ``alpha``.
        beta: difference at which the loss becomes linear; positive.
        weight: factor of each element's loss, floating point, for example (P, 1); default 1. May
            carry a gradient.
        reduction: ``"sum"``; ``"mean"``: the sum divided by the number of elements, whatever their
            weights, and 0 if there are none; ``"none"``: the loss of each element. The sum without
            a weight, and with it the mean, is a kernel's.

    A NaN makes the loss and the gradient of its element NaN.

    Returns:
        Scalar, or the shape of ``pred`` for ``"none"``, in float64 if an input is float64, else
        float32; half precision is computed in float32 and its gradient comes back in half
        precision. The kernel's sum can be differentiated once.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: a shape, a device or an option is wrong, or ``target`` requires a gradient.
    """
    op = "balanced_l1_loss"
    is_plain = is_plain_sum(reduction, weight)
    # On a few hundred boxes the checks take as long as the kernel: the usual case needs few.
    if is_plain and is_usual_pair(pred, target) and not target.requires_grad:
        dtype = torch.float32
    else:
        require_constant_target(op, pred, target)
        if not is_plain:
            check_reduction(op, reduction, weight, pred.shape, pred)
        dtype = compute_dtype(weight, pred, target)
    _check_options(op, dtype, alpha, gamma, beta)
    arguments = as_dtype(pred, dtype), as_dtype(target, dtype), alpha, gamma, beta
    if is_plain:
        return _one_pass(*arguments)
    return reduce_terms(
        lambda: reference.elementwise_balanced_l1_loss(*arguments),
        lambda: _balanced_l1_loss(*arguments),
        pred.shape,
        None,
        weight,
        reduction,
    )


def _check_options(op: str, dtype: torch.dtype, alpha: float, gamma: float, beta: float) -> None:
    least, greatest = LIMITS[dtype]
    are_usual = least <= alpha <= greatest and least <= beta <= greatest
    if not (are_usual and least <= gamma <= greatest):
        require_positive(op, dtype, alpha=alpha, gamma=gamma, beta=beta)
    if gamma > 80 * alpha:
        raise ValueError(f"{op}: gamma must be at most 80 alpha, got {gamma} and alpha {alpha}")
    if gamma < alpha / 1000:
        raise ValueError(
            f"{op}: gamma must be at least alpha / 1000, got {gamma} and alpha {alpha}"
        )
