"""Matching of anchors to ground truth in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .pairwise_box_iou import pairwise_box_iou

# Rows of the IoU matrix that are held at once.
BOXES_PER_CHUNK = 16


def match_anchors(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_sizes: list[int],
    thresholds: list[float],
    labels: list[int],
    allow_low_quality: bool = True,
    d2_compat: bool = False,
    ignore_boxes: Tensor | None = None,
    ignore_sizes: Sequence[int] = (),
    ignore_iof: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`resobj_d2.ops.match_anchors`."""
    num_images, num_anchors = len(gt_sizes), anchors.shape[-2]
    gt_index = anchors.new_empty((num_images, num_anchors), dtype=torch.int64)
    ious = anchors.new_empty((num_images, num_anchors))
    match_label = anchors.new_empty((num_images, num_anchors), dtype=torch.int8)
    images = zip(
        anchors.expand(num_images, -1, -1),
        gt_boxes.split(list(gt_sizes)),
        [None] * num_images if ignore_boxes is None else ignore_boxes.split(list(ignore_sizes)),
        strict=True,
    )
    for i, (own_anchors, boxes, regions) in enumerate(images):
        gt_index[i], ious[i], is_best = _best_boxes(own_anchors, boxes, d2_compat)
        match_label[i] = labels[0]
        for threshold, label in zip(thresholds, labels[1:], strict=True):
            match_label[i] = torch.where(ious[i] >= threshold, label, match_label[i])
        if allow_low_quality:
            match_label[i] = torch.where(is_best, 1, match_label[i])
        if regions is not None and len(regions) > 0:
            covered = (pairwise_box_iou(regions, own_anchors, "iof") >= ignore_iof).any(dim=0)
            match_label[i] = torch.where(covered & (match_label[i] != 1), -1, match_label[i])
    return gt_index, ious, match_label


def _best_boxes(anchors: Tensor, boxes: Tensor, d2_compat: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(R,) best box of each anchor, its IoU, and whether the anchor is the best one of a box."""
    best = anchors.new_zeros(len(anchors))
    index = torch.full_like(best, 0 if len(boxes) else -1, dtype=torch.int64)
    is_best = torch.zeros_like(best, dtype=torch.bool)
    if len(anchors) == 0:
        return index, best, is_best
    for first in range(0, len(boxes), BOXES_PER_CHUNK):
        ious = pairwise_box_iou(boxes[first : first + BOXES_PER_CHUNK], anchors)
        chunk_best, chunk_index = ious.max(dim=0)
        # Strictly greater, so that the first box wins ties across chunks as it does within one.
        index = torch.where(chunk_best > best, chunk_index + first, index)
        best = torch.maximum(chunk_best, best)
        best_of_box = ious.amax(dim=1, keepdim=True)
        is_best |= ((ious == best_of_box) & ((best_of_box > 0) | d2_compat)).any(dim=0)
    return index, best, is_best
