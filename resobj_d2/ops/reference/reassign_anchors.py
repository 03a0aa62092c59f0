"""Refined anchors and their new matches in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .match_anchors import match_anchors


def reassign_anchors(
    anchors: Tensor,
    deltas: Tensor,
    gt_boxes: Tensor,
    gt_sizes: list[int],
    weights: list[float],
    scale_clamp: float,
    thresholds: list[float],
    labels: list[int],
    allow_low_quality: bool = False,
    d2_compat: bool = False,
    ignore_boxes: Tensor | None = None,
    ignore_sizes: Sequence[int] = (),
    ignore_iof: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`resobj_d2.ops.reassign_anchors`."""
    boxes = _decode(anchors, deltas, weights, scale_clamp)
    boxes = torch.where(_usable(boxes)[..., None], boxes, anchors)
    gt_index, ious, label = match_anchors(
        boxes,
        gt_boxes,
        gt_sizes,
        thresholds,
        labels,
        allow_low_quality,
        d2_compat,
        ignore_boxes,
        ignore_sizes,
        ignore_iof,
    )
    # An extra row serves the images without boxes.
    padded = F.pad(gt_boxes, (0, 0, 0, 1))
    first = [sum(gt_sizes[:i]) for i in range(len(gt_sizes))]
    rows = [
        index + start if size else torch.full_like(index, len(gt_boxes))
        for index, start, size in zip(gt_index, first, gt_sizes, strict=True)
    ]
    matched = padded[torch.stack(rows)] if rows else boxes
    counts = (label == 1) & _usable(boxes) & _usable(matched)
    targets = torch.where(counts[..., None], _encode(boxes, matched, weights), 0.0)
    return boxes, gt_index, ious, label, targets


def _usable(boxes: Tensor) -> Tensor:
    """(...) bool: finite and of positive area."""
    return torch.isfinite(boxes).all(dim=-1) & (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def _decode(anchors: Tensor, deltas: Tensor, weights: list[float], scale_clamp: float) -> Tensor:
    centre, size = _centre_and_size(anchors)
    dx, dy, dw, dh = (d * (1 / w) for d, w in zip(deltas.unbind(-1), weights, strict=True))
    centre = torch.stack((dx, dy), dim=-1) * size + centre
    scale = torch.stack((dw, dh), dim=-1).clamp(max=scale_clamp)
    half = 0.5 * (torch.exp(scale) * size)
    return torch.cat((centre - half, centre + half), dim=-1)


def _encode(boxes: Tensor, targets: Tensor, weights: list[float]) -> Tensor:
    centre, size = _centre_and_size(boxes)
    target_centre, target_size = _centre_and_size(targets)
    deltas = torch.cat(
        ((target_centre - centre) / size, torch.log(target_size / size)), dim=-1
    ).unbind(-1)
    return torch.stack([d * w for d, w in zip(deltas, weights, strict=True)], dim=-1)
