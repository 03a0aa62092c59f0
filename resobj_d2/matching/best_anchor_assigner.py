"""SSD's label assignment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from resobj_d2 import ops
from resobj_d2.options import Option
from resobj_d2.structures import GroundTruth, Priors, StagePrediction, Targets

from .build import ASSIGNER_REGISTRY
from .ground_truth_owners import anchor_owners
from .max_iou_assigner import MaxIoUAssigner

__all__ = ["BestAnchorAssigner"]


@ASSIGNER_REGISTRY.register()
class BestAnchorAssigner(MaxIoUAssigner):
    """IoU thresholds, after every ground truth got its best anchor (Liu et al. 2016, "SSD", 2.2).

    Exactly one anchor: of several with the same IoU the first. It is trained as that ground truth
    even where it overlaps another one more. Two with the same best anchor: the later one has it,
    and the other only what the thresholds give it. A ground truth that overlaps no anchor gets
    none. ``MaxIoUAssigner`` with ``allow_low_quality`` takes all anchors of the same best IoU
    instead, and each keeps the ground truth that it overlaps most.

    ``Targets.gt_index`` is the ground truth an anchor is trained as, ``matched_ious`` still the
    best IoU with any. Memory is that of the result and O(R + M) more, never the M x R matrix.

    Args:
        num_classes, iou_thresholds, iou_labels: see :class:`MaxIoUAssigner`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        iou_thresholds: Annotated[
            Sequence[float], Option("ascending bounds of IoU", follows=True)
        ] = (0.5,),
        iou_labels: Annotated[
            Sequence[int], Option("labels below and above them", follows=True)
        ] = (0, 1),
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            iou_thresholds=iou_thresholds,
            iou_labels=iou_labels,
            allow_low_quality=False,
        )

    @torch.no_grad()
    def __call__(
        self,
        priors: Priors,
        anchors: Tensor,
        ground_truth: GroundTruth,
        prediction: StagePrediction | None = None,
    ) -> Targets:
        """
        Args:
            anchors: (R, 4) shared by the batch, or (N, R, 4).
        """
        targets = super().__call__(priors, anchors, ground_truth, prediction)
        best = _best_anchors(anchors, ground_truth)
        owner, rows = anchor_owners(best, ground_truth, anchors.shape[-2])
        owned = owner >= 0
        # The row past the last is of anchors without an owner; nobody uses it.
        classes = F.pad(ground_truth.classes, (0, 1))
        boxes = F.pad(ground_truth.boxes, (0, 0, 0, 1))
        return replace(
            targets,
            labels=torch.where(owned, classes[rows], targets.labels),
            matched_gt_boxes=torch.where(owned[..., None], boxes[rows], targets.matched_gt_boxes),
            gt_index=torch.where(owned, owner, targets.gt_index),
        )


def _best_anchors(anchors: Tensor, ground_truth: GroundTruth) -> Tensor:
    """(sum M_i,) first best anchor of each ground truth; R where it overlaps none."""
    num_anchors = anchors.shape[-2]
    # match_anchors with exchanged roles: the "anchors" are the boxes and look for their best
    # among the anchors. All images that share their anchors are one such image.
    pairs = [(ground_truth.boxes, anchors)]
    if anchors.dim() == 3:
        pairs = list(zip(ground_truth.boxes.split(ground_truth.counts), anchors, strict=True))
    best = []
    for boxes, candidates in pairs:
        match = ops.match_anchors(
            boxes, candidates, [num_anchors], thresholds=[1.0], labels=[0, 0],
            allow_low_quality=False,
        )  # fmt: skip
        best.append(torch.where(match.ious[0] > 0, match.gt_index[0], num_anchors))
    return torch.cat(best)
