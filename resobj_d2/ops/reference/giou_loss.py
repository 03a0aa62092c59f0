"""The losses 1 - GIoU, 1 - DIoU and 1 - CIoU in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ._box_pairs import (
    EPSILON,
    HUGE,
    PairGeometry,
    PairSlopes,
    distance_penalty,
    gradient_of_first,
    in_order_of,
    pair_geometry,
    sort_corners,
)


def giou_loss(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum of 1 - GIoU (Rezatofighi et al., CVPR 2019, Algorithm 1).

    See :func:`resobj_d2.ops.giou_loss`.
    """
    return elementwise_box_loss(pred, target, mask, "giou").sum()


def elementwise_box_loss(pred: Tensor, target: Tensor, mask: Tensor | None, kind: str) -> Tensor:
    """(...) 1 - ``"giou"``, ``"diou"`` or ``"ciou"`` of each pair; 0 outside the mask."""
    if mask is not None:
        # Replaced rather than multiplied by zero, so that no NaN leaks.
        pred = torch.where(mask[..., None], pred, pred.new_zeros(()))
        target = torch.where(mask[..., None], target, target.new_zeros(()))
    scale, epsilon = _scale(pred, target)
    first, second = sort_corners(pred) * scale, sort_corners(target) * scale
    pair = pair_geometry(first, second)
    iou = pair.intersection / (pair.union + epsilon)
    if kind == "giou":
        loss = 1 - (iou - (pair.hull - pair.union) / (pair.hull + epsilon))
    else:
        loss = 1 - iou + distance_penalty(first, second, iou, kind, epsilon)
    return loss if mask is None else loss * mask


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
    huge = HUGE[pred.dtype]
    is_huge = torch.cat((pred, target), dim=-1).abs().gt(huge["limit"]).any(dim=-1)
    one = pred.new_ones(())
    return (
        torch.where(is_huge, one * huge["factor"], one)[..., None],
        torch.where(is_huge, one * huge["epsilon"], one * EPSILON),
    )
