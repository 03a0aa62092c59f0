"""Geometry of pairs of boxes, shared by the overlaps and the GIoU loss, in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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


def overlap(boxes1: Tensor, boxes2: Tensor, kind: str) -> Tensor:
    """``"iou"``, ``"giou"`` or ``"iof"`` of boxes (..., 4) that broadcast against each other.

    GIoU is that of the boxes with sorted corners; to the others a box with swapped corners overlaps
    nothing.
    """
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
