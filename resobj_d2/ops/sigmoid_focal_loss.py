"""Focal loss over independent sigmoids, from class labels or from soft targets."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._checks import as_dtype, compute_dtype, require_dtype, require_floating, require_same_device
from ._library import define_op, no_backward
from ._one_pass import define_one_pass_of_sum
from ._reduction import check_reduction, is_plain_sum, reduce_terms

OP = "sigmoid_focal_loss"
MAX_GAMMA = 1000


def _fake(logits, labels, mask=None, alpha=0.25, gamma=2.0):
    return logits.new_empty(())


def _setup_context(ctx, inputs, output):
    logits, labels, mask, ctx.alpha, ctx.gamma = inputs
    ctx.save_for_backward(logits, labels, mask)


def _backward(ctx, grad_loss):
    # Unless the incoming gradient is known in the forward, slopes are recomputed rather than saved:
    # the forward then holds no second tensor as large as the logits, and recomputing takes less
    # memory traffic than scaling saved slopes.
    grad_logits = _sigmoid_focal_loss_backward(grad_loss, *ctx.saved_tensors, ctx.alpha, ctx.gamma)
    return grad_logits, None, None, None, None


def _fake_backward(grad_loss, logits, labels, mask, alpha, gamma):
    return logits.new_empty(logits.shape)


_sigmoid_focal_loss = define_op(
    "sigmoid_focal_loss",
    reference=reference.sigmoid_focal_loss,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)

_sigmoid_focal_loss_backward = define_op(
    "_sigmoid_focal_loss_backward",
    reference=reference.sigmoid_focal_loss_backward,
    fake=_fake_backward,
    backward=no_backward("sigmoid_focal_loss can be differentiated once, not twice"),
)


_one_pass = define_one_pass_of_sum(
    "sigmoid_focal_loss",
    _sigmoid_focal_loss,
    loss=reference.sigmoid_focal_loss,
    gradient=reference.sigmoid_focal_loss_backward,
    backward=_backward,
    setup_context=_setup_context,
)


def sigmoid_focal_loss(
    logits: Tensor,  # (..., K)
    labels: Tensor,  # (...) int64, or (..., K) floating point
    mask: Tensor | None = None,  # (...) bool
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    weight: Tensor | None = None,  # broadcasts to (..., K)
    reduction: str = "sum",
) -> Tensor:  # (), or (..., K) for "none"
    """Focal loss ``-a_t (1 - p_t)^gamma log p_t`` (Lin et al., RetinaNet, Eq. 5), summed.

    From class labels no one-hot target is formed; the largest allocation is the gradient.

    For soft or multi-label targets y, as in torchvision: ``a_t (1 - p_t)^gamma BCE(p, y)`` with
    ``p_t = y p + (1 - y) (1 - p)`` and ``a_t = y alpha + (1 - y) (1 - alpha)``. (Generalized focal
    loss, Li et al. 2020, has ``|y - p|^gamma`` in place of ``(1 - p_t)^gamma``; the two agree for
    targets of 0 and 1.)

    Args:
        logits: (..., K), one logit per class.
        labels: (...) int64. A value in [0, K) is the anchor's class; K or more is background (all
            classes are negative); a negative value means ignored. Or (..., K) floating point, a
            target in [0, 1] for each class (not checked, since the host would have to wait for
            the device), any number of them above 0; a negative value means that the class is
            ignored for this anchor. No gradient is computed for them.
        mask: (...) bool, the anchors that count; default all. Anchors outside the mask contribute
            neither loss nor gradient, even if their logits are not finite.
        alpha: weight of the positive class, with ``1 - alpha`` for the others; at most 1. A
            negative value disables the weighting.
        gamma: focusing exponent, 0 to 1000; 0 gives (weighted) binary cross entropy.
        weight: factor of each class's loss, floating point, for example (..., 1) for anchors or
            (K,) for classes; default 1. May carry a gradient.
        reduction: ``"sum"``; ``"mean"``: the sum divided by the number of logits that count,
            whatever their weights, and 0 if there are none; ``"none"``: the loss of each logit, 0
            where it does not count.

    Class labels without a weight, summed or averaged, are a kernel's; the rest is composed of plain
    torch operators, as fast as torchvision's loss.

    Returns:
        Scalar, or (..., K) for ``"none"``, in float64 if ``logits``, ``weight`` or soft targets
        are float64, else float32; half precision is computed in float32 and its gradient comes
        back in half precision. The kernel's sum can be differentiated once.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape, a device or an option is wrong.
    """
    is_soft = _check_tensors(logits, labels, mask)
    _check_options(alpha, gamma)
    is_plain = is_plain_sum(reduction, weight)
    if not is_plain:
        check_reduction(OP, reduction, weight, logits.shape, logits)
    dtype = compute_dtype(weight, logits, *((labels,) if is_soft else ()))
    logits = as_dtype(logits, dtype)
    labels = as_dtype(labels, dtype) if is_soft else labels
    if is_plain and not is_soft:
        return _one_pass(logits, labels, mask, alpha, gamma)

    def terms() -> Tensor:
        compute = (
            reference.elementwise_soft_focal_loss if is_soft else reference.elementwise_focal_loss
        )
        return compute(logits, labels, mask, alpha, gamma)

    def total() -> Tensor:
        if is_soft:
            return terms().sum()
        return _sigmoid_focal_loss(logits, labels, mask, alpha, gamma)

    counts = reference.counted(labels, mask)
    return reduce_terms(terms, total, logits.shape, counts, weight, reduction)


def _check_tensors(logits: Tensor, labels: Tensor, mask: Tensor | None) -> bool:
    """Whether the labels are soft targets."""
    require_floating(OP, logits=logits)
    if logits.dim() == 0:
        raise ValueError(f"{OP}: logits must have shape (..., classes), got a scalar")
    is_soft = (
        isinstance(labels, Tensor) and labels.is_floating_point() and labels.dim() == logits.dim()
    )
    of_anchors = {}
    if is_soft:
        if labels.shape != logits.shape:
            raise ValueError(
                f"{OP}: labels that are soft targets must have the shape of logits, "
                f"{tuple(logits.shape)}, got {tuple(labels.shape)}"
            )
        if labels.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{OP}: no gradient is computed for labels; pass labels.detach()")
    else:
        require_dtype(OP, torch.int64, labels=labels)
        of_anchors["labels"] = labels
    if mask is not None:
        require_dtype(OP, torch.bool, mask=mask)
        of_anchors["mask"] = mask
    for name, value in of_anchors.items():
        if value.shape != logits.shape[:-1]:
            raise ValueError(
                f"{OP}: {name} must have the shape of logits without the classes, "
                f"{tuple(logits.shape[:-1])}, got {tuple(value.shape)}"
            )
    require_same_device(OP, logits=logits, **{"labels": labels, **of_anchors})
    return is_soft


def _check_options(alpha: float, gamma: float) -> None:
    if not alpha <= 1:
        raise ValueError(f"{OP}: alpha must be at most 1 (negative: no weighting), got {alpha}")
    if not gamma >= 0:
        raise ValueError(f"{OP}: gamma must be at least 0, got {gamma}")
    if gamma > MAX_GAMMA:
        raise ValueError(f"{OP}: gamma must be at most {MAX_GAMMA}, got {gamma}")
