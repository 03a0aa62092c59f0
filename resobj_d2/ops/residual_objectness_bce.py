"""The loss of Residual Objectness (Chen et al., 2019), Algorithm 1, all steps in one operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference
from ._checks import as_dtype, compute_dtype
from ._library import define_op, no_backward
from ._one_pass import define_one_pass
from ._reduction import check_reduction, is_plain_sum, weighted

DETACH = ("all", "objectness", "none")
MIN_SCOPES = ("image", "batch", "level", "none")
UNSELECTED = ("update", "keep")
# The kernels keep one value per step (and one offset per level) in registers.
MAX_STEPS = 8
MAX_LEVELS = 32


class ResidualObjectnessOutput(NamedTuple):
    """Result of :func:`residual_objectness_bce`; only ``losses`` carries a gradient."""

    losses: Tensor  # (T+1,) binary cross entropy at step 0..T, reduced; unreduced (T+1, N, R)
    counts: Tensor  # (T+1,) int64, number of anchors in each sum
    thresholds: Tensor  # (T, G) minimum foreground logit before steps 1..T; +inf without foreground
    score_sums: Tensor  # (T+1, 2) sum of sigmoid(o_t) over background and over foreground
    num_background_foreground: Tensor  # (2,) int64, number of background and foreground anchors


def _fake(
    logits,
    residuals,
    labels,
    detach="all",
    min_scope="image",
    unselected="update",
    anchors_per_level=(),
):
    steps = residuals.shape[0]
    num_groups = reference.count_groups(logits.shape[0], min_scope, anchors_per_level)
    return (
        logits.new_empty(steps + 1),
        logits.new_empty(steps + 1, dtype=torch.int64),
        logits.new_empty(steps, num_groups),
        logits.new_empty(steps + 1, 2),
        logits.new_empty(2, dtype=torch.int64),
    )


def _setup_context(ctx, inputs, output):
    logits, residuals, labels, *ctx.options = inputs
    _, *others = output
    # The backward recomputes o_1..o_T, which is cheaper than keeping them.
    ctx.save_for_backward(logits, residuals, labels, others[1])
    ctx.mark_non_differentiable(*others)


def _backward(ctx, grad_losses, *unused_grads):
    grad_logits, grad_residuals = _residual_objectness_bce_backward(
        grad_losses, *ctx.saved_tensors, *ctx.options
    )
    return grad_logits, grad_residuals, None, None, None, None, None


def _fake_backward(
    grad_losses,
    logits,
    residuals,
    labels,
    thresholds,
    detach,
    min_scope,
    unselected,
    anchors_per_level,
):
    return logits.new_empty(logits.shape), logits.new_empty(residuals.shape)


_residual_objectness_bce = define_op(
    "residual_objectness_bce",
    reference=reference.residual_objectness_bce,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)

_residual_objectness_bce_backward = define_op(
    "_residual_objectness_bce_backward",
    reference=reference.residual_objectness_bce_backward,
    fake=_fake_backward,
    backward=no_backward("residual_objectness_bce can be differentiated once, not twice"),
)


def _reference_with_gradient(grad_losses, logits, residuals, labels, *options):
    tensors = logits, residuals, labels
    results = reference.residual_objectness_bce(*tensors, *options)
    gradients = reference.residual_objectness_bce_backward(
        grad_losses, *tensors, results[2], *options
    )
    return *results, *gradients


def _fake_with_gradient(grad_losses, logits, residuals, labels, *options):
    gradients = logits.new_empty(logits.shape), logits.new_empty(residuals.shape)
    return *_fake(logits, residuals, labels, *options), *gradients


_one_pass = define_one_pass(
    "residual_objectness_bce",
    _residual_objectness_bce,
    reference=_reference_with_gradient,
    fake=_fake_with_gradient,
    backward=_backward,
    setup_context=_setup_context,
    num_gradients=2,
    loss_shape=lambda logits, residuals, *others: (residuals.shape[0] + 1,),
)


def residual_objectness_bce(
    logits: Tensor,  # (N, R)
    residuals: Tensor,  # (T, N, R)
    labels: Tensor,  # (N, R) int8
    *,
    detach: str = "all",
    min_scope: str = "image",
    unselected: str = "update",
    anchors_per_level: Sequence[int] = (),
    weight: Tensor | None = None,  # broadcasts to (N, R)
    reduction: str = "sum",
) -> ResidualObjectnessOutput:
    """Sums of the objectness loss and of the T residual losses (Algorithm 1).

    With o_0 = ``logits`` and r_t = ``residuals[t-1]``, step 0 sums BCE(o_0, label) over all anchors
    that are not ignored. Step t takes the smallest o_{t-1} of the foreground anchors as threshold,
    selects the non-ignored anchors with o_{t-1} >= threshold, computes o_t = o_{t-1} + r_t and sums
    BCE(o_t, label) over the selected ones. Without a foreground anchor, or with all of them at
    +inf, the threshold is +inf, which selects nothing, and the sum is exactly 0. Selection and
    thresholds carry no gradient.

    N images, R anchors per image, T steps (0 to 8), G groups, L pyramid levels (at most 32).

    Args:
        logits: (N, R) objectness logits o_0, floating point.
        residuals: (T, N, R) residual logits r_1..r_T.
        labels: (N, R) int8: 1 foreground, 0 background, -1 ignored. (Any positive value counts as
            foreground and any negative one as ignored; values are not checked, since the host
            would have to wait for the device.)
        detach: ``"all"``: o_{t-1} is a constant in o_t, so L_t trains only r_t, and ``logits`` gets
            the gradient of L_0 only. ``"objectness"``: o_0 is a constant in the steps, and L_t
            trains r_1..r_t. ``"none"``: L_t also trains ``logits``.
        min_scope: the group over which the minimum is taken. ``"image"`` (G = N); ``"batch"``
            (G = 1); ``"level"``: each pyramid level, over all images (G = L; needs
            ``anchors_per_level``); ``"none"``: every anchor that is not ignored is selected (G = 1,
            thresholds -inf).
        unselected: ``"update"``: o_t = o_{t-1} + r_t for every anchor, as at inference; only the
            loss is restricted to the selected. ``"keep"``: o_t = o_{t-1} for unselected anchors,
            whose residuals then get no gradient.
        anchors_per_level: L anchor counts that sum to R, in the order of the anchors; for
            ``min_scope="level"`` only.
        weight: factor of each anchor's loss, floating point, at every step; default 1. It changes
            the losses only, not what is selected, and may carry a gradient.
        reduction: ``"sum"``; ``"mean"``: each step's sum divided by its count, whatever the
            weights, and 0 if that is 0; ``"none"``: (T+1, N, R), 0 for anchors that are not in a
            sum. The sum without a weight, and with it the mean, is a kernel's.

    Returns:
        :class:`ResidualObjectnessOutput`, in float64 if an input is float64, else float32; half
        precision is computed in float32 and its gradients come back in half precision.

    A NaN logit is never "below the threshold": it is selected and makes the loss of its step NaN.
    A NaN foreground logit makes the threshold NaN, which selects every anchor of its group. (In a
    group without foreground nothing is selected at steps >= 1, NaN or not.)

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape, a device or an option is wrong.
    """
    anchors_per_level = list(anchors_per_level)
    is_usual = _are_usual(logits, residuals, labels)
    if not is_usual:
        _check_tensors(logits, residuals, labels)
    _check_options(detach, min_scope, unselected, anchors_per_level, logits.shape[1])
    is_plain = is_plain_sum(reduction, weight)
    options = detach, min_scope, unselected, anchors_per_level
    if is_plain and is_usual:
        return ResidualObjectnessOutput(*_one_pass(logits, residuals, labels, *options))
    if not is_plain:
        check_reduction("residual_objectness_bce", reduction, weight, logits.shape, logits)
    dtype = compute_dtype(weight, logits, residuals)
    compute = _one_pass if is_plain else _residual_objectness_bce
    if weight is not None or reduction == "none":
        compute = reference.residual_objectness_terms
    results = compute(as_dtype(logits, dtype), as_dtype(residuals, dtype), labels, *options)
    if is_plain:
        return ResidualObjectnessOutput(*results)
    losses, counts, *others = results
    losses = _reduced(losses, labels, counts, weight, reduction)
    return ResidualObjectnessOutput(losses, counts, *others)


def _reduced(
    losses: Tensor, labels: Tensor, counts: Tensor, weight: Tensor | None, reduction: str
) -> Tensor:
    """The losses are one by one if there is a weight or no reduction, else summed."""
    if weight is not None:
        losses = weighted(losses, labels >= 0, weight)
    if reduction == "none":
        return losses
    summed = losses if losses.dim() == 1 else losses.sum(dim=(1, 2))
    return summed if reduction == "sum" else summed / counts.clamp(min=1)


def _are_usual(logits: Tensor, residuals: Tensor, labels: Tensor) -> bool:
    """Whether these are float32, and pass all checks: on few anchors, those take a while."""
    if not (logits.dtype is residuals.dtype is torch.float32 and labels.dtype is torch.int8):
        return False
    shape, of_residuals = logits.shape, residuals.shape
    return (
        len(shape) == 2
        and labels.shape == shape
        and of_residuals[1:] == shape
        and of_residuals[0] <= MAX_STEPS
        and logits.device == residuals.device == labels.device
    )


def _check_tensors(logits: Tensor, residuals: Tensor, labels: Tensor) -> None:
    where = "residual_objectness_bce:"
    for name, value in (("logits", logits), ("residuals", residuals)):
        if not value.is_floating_point():
            raise TypeError(f"{where} {name} must be floating point, got {value.dtype}")
    if labels.dtype != torch.int8:
        raise TypeError(
            f"{where} labels must be int8 (-1 ignored, 0 background, 1 foreground), "
            f"got {labels.dtype}; convert with labels.to(torch.int8)"
        )
    if logits.dim() != 2:
        raise ValueError(
            f"{where} logits must have shape (images, anchors), got {tuple(logits.shape)}"
        )
    if residuals.dim() != 3 or residuals.shape[1:] != logits.shape:
        raise ValueError(
            f"{where} residuals must have shape (steps, {logits.shape[0]}, {logits.shape[1]}) "
            f"to match logits, got {tuple(residuals.shape)}"
        )
    if residuals.shape[0] > MAX_STEPS:
        raise ValueError(
            f"{where} residuals must have at most {MAX_STEPS} steps, got {residuals.shape[0]}"
        )
    if labels.shape != logits.shape:
        raise ValueError(
            f"{where} labels must have the shape of logits, {tuple(logits.shape)}, "
            f"got {tuple(labels.shape)}"
        )
    for name, value in (("residuals", residuals), ("labels", labels)):
        if value.device != logits.device:
            raise ValueError(
                f"{where} {name} is on {value.device}, but logits is on {logits.device}"
            )


def _check_options(
    detach: str, min_scope: str, unselected: str, anchors_per_level: list[int], num_anchors: int
) -> None:
    where = "residual_objectness_bce:"
    for name, value, choices in (
        ("detach", detach, DETACH),
        ("min_scope", min_scope, MIN_SCOPES),
        ("unselected", unselected, UNSELECTED),
    ):
        if value not in choices:
            raise ValueError(f"{where} {name} must be one of {', '.join(choices)}, got {value!r}")
    if min_scope != "level":
        if anchors_per_level:
            raise ValueError(f"{where} anchors_per_level is only for min_scope='level'")
        return
    if not 0 < len(anchors_per_level) <= MAX_LEVELS or min(anchors_per_level) < 0:
        raise ValueError(
            f"{where} anchors_per_level must be 1 to {MAX_LEVELS} non-negative sizes for "
            f"min_scope='level', got {anchors_per_level}"
        )
    if sum(anchors_per_level) != num_anchors:
        raise ValueError(
            f"{where} anchors_per_level sum to {sum(anchors_per_level)}, but logits has "
            f"{num_anchors} anchors"
        )
