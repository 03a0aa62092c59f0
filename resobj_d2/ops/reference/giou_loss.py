"""The generalized IoU loss in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ._box_pairs import (
    PairGeometry,
    PairSlopes,
    gradient_of_first,
    in_order_of,
    pair_geometry,
    sort_corners,
)

# Coordinates of `limit` or more are multiplied by `factor` so that no area overflows.
_HUGE = {
    torch.float32: {"limit": 2.0**60, "factor": 2.0**-67, "epsilon": 1e-19},
    torch.float64: {"limit": 2.0**500, "factor": 2.0**-524, "epsilon": 1e-100},
}
_EPSILON = 1e-7


def giou_loss(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum of 1 - GIoU (Rezatofighi et al., CVPR 2019, Algorithm 1).

    See :func:`resobj_d2.ops.giou_loss`.
    """
    if mask is not None:
        # Replaced rather than multiplied by zero, so that no NaN leaks.
        pred = torch.where(mask[..., None], pred, pred.new_zeros(()))
        target = torch.where(mask[..., None], target, target.new_zeros(()))
    scale, epsilon = _scale(pred, target)
    pair = pair_geometry(sort_corners(pred) * scale, sort_corners(target) * scale)
    iou = pair.intersection / (pair.union + epsilon)
    loss = 1 - (iou - (pair.hull - pair.union) / (pair.hull + epsilon))
    return (loss if mask is None else loss * mask).sum()


def giou_loss_backward(
    grad_loss: Tensor, pred: Tensor, target: Tensor, mask: Tensor | None
) -> Tensor:
    """Gradient of ``grad_loss * loss`` with respect to ``pred``."""
    scale, epsilon = _scale(pred, target)
    first, second = sort_corners(pred) * scale, sort_corners(target) * scale
    pair = pair_geometry(first, second)
    gradient = gradient_of_first(first, second, pair, _giou_loss_slopes(pair, epsilon))
    gradient = in_order_of(pred, gradient) * (grad_loss * scale)
    if mask is not None:
        gradient = torch.where(mask[..., None], gradient, gradient.new_zeros(()))
    return gradient


def _giou_loss_slopes(pair: PairGeometry, epsilon: Tensor) -> PairSlopes:
    inverse_union = 1 / (pair.union + epsilon)
    inverse_hull = 1 / (pair.hull + epsilon)
    by_union = pair.intersection * inverse_union * inverse_union - inverse_hull
    outside = (pair.hull - pair.union) * inverse_hull
    return PairSlopes(-inverse_union - by_union, by_union, inverse_hull - outside * inverse_hull)


def _scale(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 1) factor for the coordinates and (...) epsilon added to the areas."""
    huge = _HUGE[pred.dtype]
    is_huge = torch.cat((pred, target), dim=-1).abs().gt(huge["limit"]).any(dim=-1)
    one = pred.new_ones(())
    return (
        torch.where(is_huge, one * huge["factor"], one)[..., None],
        torch.where(is_huge, one * huge["epsilon"], one * _EPSILON),
    )
