"""Overlap of every box of one set with every box of another set, in plain torch."""

from __future__ import annotations

from torch import Tensor

from ._box_pairs import overlap


def pairwise_box_iou(boxes1: Tensor, boxes2: Tensor, kind: str = "iou") -> Tensor:
    """See :func:`resobj_d2.ops.pairwise_box_iou`."""
    return overlap(boxes1[:, None], boxes2, kind)


def pairwise_box_iou_out(boxes1: Tensor, boxes2: Tensor, kind: str, out: Tensor) -> None:
    """See ``out`` of :func:`resobj_d2.ops.pairwise_box_iou`."""
    out.copy_(pairwise_box_iou(boxes1, boxes2, kind))
