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
    """Best anchor of each ground truth first, then IoU thresholds (Liu et al. 2016, "SSD", 2.2).

    Each ground truth gets exactly one best anchor (ties: the first), which is trained as that
    ground truth even if it overlaps another one more. If two ground truths share a best anchor, the
    later one wins, and the other only gets what the thresholds give it. A ground truth that
    overlaps no anchor gets none. In contrast, ``MaxIoUAssigner`` with ``allow_low_quality`` takes
    all anchors with the best IoU, and each stays with the ground truth that it overlaps most.

    ``Targets.gt_index`` is the ground truth that an anchor is trained as; ``matched_ious`` remains
    the best IoU with any. Besides the result it needs O(R + M) memory, never the M x R matrix.

    Args:
        num_classes, iou_thresholds, iou_labels: see :class:`MaxIoUAssigner`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        iou_thresholds: Annotated[
            Sequence[float], Option("ascending IoU thresholds", follows=True)
        ] = (0.5,),
        iou_labels: Annotated[
            Sequence[int], Option("labels below and above the thresholds", follows=True)
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
        # The extra last row is for anchors without an owner; its values are never used.
        classes = F.pad(ground_truth.classes, (0, 1))
        boxes = F.pad(ground_truth.boxes, (0, 0, 0, 1))
        return replace(
            targets,
            labels=torch.where(owned, classes[rows], targets.labels),
            matched_gt_boxes=torch.where(owned[..., None], boxes[rows], targets.matched_gt_boxes),
            gt_index=torch.where(owned, owner, targets.gt_index),
        )


def _best_anchors(anchors: Tensor, ground_truth: GroundTruth) -> Tensor:
    """(sum M_i,) first best anchor of each ground truth; R if it overlaps none."""
    num_anchors = anchors.shape[-2]
    # match_anchors with swapped roles: the boxes act as "anchors" and find their best match among
    # the anchors. Images that share their anchors are handled as a single image.
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
