"""Geometry of pairs of boxes, shared by the overlaps and the losses of boxes, in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Added to areas, so that those of boxes without area can be divided by; the losses' definition.
EPSILON = 1e-7
# Coordinates of `limit` or more are multiplied by `factor` so that no area overflows.
HUGE = {
    torch.float32: {"limit": 2.0**60, "factor": 2.0**-67, "epsilon": 1e-19},
    torch.float64: {"limit": 2.0**500, "factor": 2.0**-524, "epsilon": 1e-100},
}

# What a pair gets that has no distance; the greatest lower bound of IoU - 1 - v^2 / (1 + v).
WORST = {"diou": -1.0, "ciou": -1.5}


class PairGeometry(NamedTuple):
    """The quantities that IoU, GIoU and IoF are computed from."""

    size: Tensor  # (..., 2) width and height of the intersection, 0 if empty
    intersection: Tensor  # (...) area
    union: Tensor
    hull_size: Tensor  # (..., 2) of the smallest enclosing box
    hull: Tensor


def pair_geometry(boxes1: Tensor, boxes2: Tensor) -> PairGeometry:
    """Geometry of boxes (..., 4) that broadcast against each other.

    The hull needs sorted corners. relu rather than clamp, whose gradient at 0 depends on torch's
    version.
    """
    top_left = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    bottom_right = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    size = torch.relu(bottom_right - top_left)
    intersection = size[..., 0] * size[..., 1]
    union = _areas(boxes1) + _areas(boxes2) - intersection
    hull_size = torch.maximum(boxes1[..., 2:], boxes2[..., 2:]) - torch.minimum(
        boxes1[..., :2], boxes2[..., :2]
    )
    return PairGeometry(size, intersection, union, hull_size, hull_size[..., 0] * hull_size[..., 1])


def sort_corners(boxes: Tensor) -> Tensor:
    """Sorts the corners; equal coordinates keep their order, so that an empty box can grow."""
    first, last = boxes[..., :2], boxes[..., 2:]
    out_of_order = first > last
    return torch.cat(
        (torch.where(out_of_order, last, first), torch.where(out_of_order, first, last)), dim=-1
    )


def in_order_of(boxes: Tensor, values: Tensor) -> Tensor:
    """Values (..., 4) of the sorted coordinates of boxes (..., 4), in the order of the boxes."""
    swapped = torch.cat((values[..., 2:], values[..., :2]), dim=-1)
    out_of_order = boxes[..., :2] > boxes[..., 2:]
    return torch.where(torch.cat((out_of_order, out_of_order), dim=-1), swapped, values)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


class PairSlopes(NamedTuple):
    """Partial derivatives of an overlap; each (...)."""

    intersection: Tensor  # by the intersection, which also changes the union
    area: Tensor  # by the area of either box
    hull: Tensor


def gradient_of_first(
    boxes1: Tensor, boxes2: Tensor, pair: PairGeometry, slopes: PairSlopes
) -> Tensor:
    """(..., 4) gradient of the value with respect to ``boxes1``.

    Where a coordinate of both boxes is the same, each gets half, as with torch.maximum.
    """
    # d(width * height) / d(width) is the height, and vice versa.
    across = pair.size.flip(-1) * slopes.intersection[..., None]
    by_size = torch.where((pair.intersection > 0)[..., None], across, torch.zeros_like(across))
    by_area = (boxes1[..., 2:] - boxes1[..., :2]).flip(-1) * slopes.area[..., None]
    by_hull = pair.hull_size.flip(-1) * slopes.hull[..., None]
    # Of the two boxes' coordinates one bounds the intersection and the other the hull.
    first = _share_of_larger(boxes1[..., :2], boxes2[..., :2])
    last = _share_of_larger(boxes2[..., 2:], boxes1[..., 2:])
    return torch.cat(
        (
            -(by_size * first + by_area + by_hull * (1 - first)),
            by_size * last + by_area + by_hull * (1 - last),
        ),
        dim=-1,
    )


def _share_of_larger(a: Tensor, b: Tensor) -> Tensor:
    """The fraction of the gradient of max(a, b) that goes to a."""
    return (a > b).to(a.dtype) + 0.5 * (a == b).to(a.dtype)


def distance_overlap(
    boxes1: Tensor, boxes2: Tensor, kind: str, iou_of: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """``"diou"`` or ``"ciou"`` of boxes (..., 4) that broadcast against each other.

    ``iou_of`` computes the IoU of these boxes with sorted corners.
    """
    (boxes1, usable1), (boxes2, usable2) = _usable(boxes1), _usable(boxes2)
    boxes1, boxes2 = sort_corners(boxes1), sort_corners(boxes2)
    iou = iou_of(boxes1, boxes2)
    value = iou - distance_penalty(boxes1, boxes2, iou, kind)
    return torch.where(usable1 & usable2, value, value.new_full((), WORST[kind]))


def _usable(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes, 0 where a coordinate is NaN or too large to be squared, and (...) where not."""
    # A comparison with NaN is false.
    usable = (boxes.abs() <= HUGE[boxes.dtype]["limit"]).all(dim=-1)
    return torch.where(usable[..., None], boxes, boxes.new_zeros(())), usable


def distance_penalty(
    boxes1: Tensor, boxes2: Tensor, iou: Tensor, kind: str, epsilon: Tensor | float = 0.0
) -> Tensor:
    """IoU minus ``"diou"`` or ``"ciou"`` of boxes (..., 4) with sorted corners that broadcast.

    The squared distance of the centres over the squared diagonal of the smallest enclosing box
    (Zheng et al. 2020, Eq. 6) and, for CIoU, ``alpha v`` for the aspect ratios (Eq. 8, 9 and 11).
    alpha is a constant of the gradient, as published.
    """
    ax1, ay1, ax2, ay2 = boxes1.unbind(-1)
    bx1, by1, bx2, by2 = boxes2.unbind(-1)
    distance = ((ax1 + ax2 - bx1 - bx2) ** 2 + (ay1 + ay2 - by1 - by2) ** 2) / 4
    width = torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)
    height = torch.maximum(ay2, by2) - torch.minimum(ay1, by1)
    diagonal = width**2 + height**2 + epsilon
    has_hull = diagonal > 0
    penalty = distance / torch.where(has_hull, diagonal, diagonal.new_ones(()))
    penalty = torch.where(has_hull, penalty, penalty.new_zeros(()))
    if kind == "diou":
        return penalty
    (angle1, has_shape1), (angle2, has_shape2) = _aspect(boxes1), _aspect(boxes2)
    v = 4 / math.pi**2 * (angle1 - angle2) ** 2
    v = torch.where(has_shape1 & has_shape2, v, v.new_zeros(()))
    alpha = (v / (1 - iou + v + EPSILON)).detach()
    return penalty + alpha * v


def _aspect(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(...) the angle of the diagonal, and whether a box is large enough to have one."""
    size = boxes[..., 2:] - boxes[..., :2]
    longer = size.detach().amax(dim=-1)
    has_shape = longer > EPSILON
    # The angle does not depend on the scale; divided by it, no square in its derivative vanishes.
    size = size / torch.where(has_shape, longer, longer.new_ones(()))[..., None]
    size = torch.where(has_shape[..., None], size, size.new_ones(()))
    return torch.atan2(size[..., 0], size[..., 1]), has_shape


def overlap(boxes1: Tensor, boxes2: Tensor, kind: str) -> Tensor:
    """``"iou"``, ``"iof"``, ``"giou"``, ``"diou"`` or ``"ciou"`` of boxes (..., 4) that broadcast.

    To IoU and IoF a box with swapped corners overlaps nothing; the others sort the corners.
    """
    if kind in WORST:
        return distance_overlap(boxes1, boxes2, kind, lambda a, b: overlap(a, b, "iou"))
    if kind == "giou":
        boxes1, boxes2 = sort_corners(boxes1), sort_corners(boxes2)
    pair = pair_geometry(boxes1, boxes2)
    # False for boxes that do not overlap or have a NaN (NaN > 0 is false).
    intersect = (pair.intersection > 0) & (pair.union > 0)
    zero, one = pair.union.new_zeros(()), pair.union.new_ones(())
    # Replace divisors before dividing: a division by zero would make the gradient NaN.
    if kind == "iof":
        return torch.where(intersect, pair.intersection / _areas(boxes2), zero)
    iou = torch.where(intersect, pair.intersection / torch.where(intersect, pair.union, one), zero)
    if kind == "iou":
        return iou
    no_hull = (pair.hull <= 0) & ~pair.union.isnan()
    giou = iou - (pair.hull - pair.union) / torch.where(no_hull, one, pair.hull)
    giou = torch.where(no_hull, iou, giou)
    return torch.where(giou.isnan(), -one, giou)
