"""Overlaps of boxes in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def pairwise_box_iou(boxes1: Tensor, boxes2: Tensor, kind: str = "iou") -> Tensor:
    """See :func:`resobj_d2.ops.pairwise_box_iou`."""
    area1 = (boxes1[:, 2] - boxes1[:, 0]) * (boxes1[:, 3] - boxes1[:, 1])
    area2 = (boxes2[:, 2] - boxes2[:, 0]) * (boxes2[:, 3] - boxes2[:, 1])
    top_left = torch.maximum(boxes1[:, None, :2], boxes2[:, :2])
    bottom_right = torch.minimum(boxes1[:, None, 2:], boxes2[:, 2:])
    size = (bottom_right - top_left).clamp(min=0)
    intersection = size[..., 0] * size[..., 1]
    union = area1[:, None] + area2 - intersection
    # False for boxes that do not overlap and, as NaN > 0 is false, for boxes with a NaN.
    overlap = (intersection > 0) & (union > 0)
    zero = intersection.new_zeros(())
    if kind == "iof":
        return torch.where(overlap, intersection / area2, zero)
    iou = torch.where(overlap, intersection / union, zero)
    if kind == "iou":
        return iou
    hull_size = torch.maximum(boxes1[:, None, 2:], boxes2[:, 2:]) - torch.minimum(
        boxes1[:, None, :2], boxes2[:, :2]
    )
    hull_size = hull_size.clamp(min=0)
    hull = hull_size[..., 0] * hull_size[..., 1]
    giou = torch.where((hull <= 0) & ~union.isnan(), iou, iou - (hull - union) / hull)
    return torch.where(giou.isnan(), -torch.ones_like(zero), giou)
