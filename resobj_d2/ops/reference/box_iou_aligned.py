"""Overlap of boxes, pair by pair, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ._box_pairs import (
    PairGeometry,
    PairSlopes,
    gradient_of_first,
    in_order_of,
    overlap,
    pair_geometry,
    sort_corners,
)


def box_iou_aligned(pred: Tensor, target: Tensor, kind: str = "iou") -> Tensor:
    """See :func:`resobj_d2.ops.box_iou_aligned`."""
    return overlap(pred, target, kind)


def box_iou_aligned_backward(
    grad: Tensor, pred: Tensor, target: Tensor, kind: str
) -> tuple[Tensor, Tensor]:
    """Gradients of ``sum(grad * overlap)`` with respect to both boxes."""
    is_giou = kind == "giou"
    boxes = [sort_corners(box) if is_giou else box for box in (pred, target)]
    pair = pair_geometry(*boxes)
    slopes = _overlap_slopes(pair, kind)
    gradients = []
    for unsorted, first, second in ((pred, *boxes), (target, *boxes[::-1])):
        gradient = gradient_of_first(first, second, pair, slopes)
        gradient = in_order_of(unsorted, gradient) if is_giou else gradient
        gradient = torch.where(gradient.isfinite(), gradient, torch.zeros_like(gradient))
        gradients.append(grad[..., None] * gradient)
    return gradients[0], gradients[1]


def _overlap_slopes(pair: PairGeometry, kind: str) -> PairSlopes:
    """Where the overlap is replaced by a constant its derivatives are 0."""
    zero = torch.zeros_like(pair.union)
    intersect = (pair.intersection > 0) & (pair.union > 0)
    inverse_union = torch.where(intersect, 1 / pair.union, zero)
    iou = torch.where(intersect, pair.intersection / pair.union, zero)
    area, hull = -iou * inverse_union, zero
    if kind == "giou":
        has_hull = pair.hull > 0
        inverse_hull = torch.where(has_hull, 1 / pair.hull, zero)
        area = area + inverse_hull
        hull = torch.where(has_hull, -(pair.union / pair.hull) * inverse_hull, zero)
    return PairSlopes(inverse_union - area, area, hull)
