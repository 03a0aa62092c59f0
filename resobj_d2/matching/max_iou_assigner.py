"""Label assignment by IoU thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from resobj_d2 import ops
from resobj_d2.options import Option
from resobj_d2.structures import IGNORE, GroundTruth, Priors, StagePrediction, Targets

from .base import Assigner
from .build import ASSIGNER_REGISTRY

__all__ = ["MaxIoUAssigner", "background_range"]


def background_range(
    thresholds: Sequence[float], labels: Sequence[int]
) -> tuple[float, float] | None:
    """Lowest and highest IoU of the intervals that are background, between 0 and 1.

    Args:
        thresholds: ascending bounds of the intervals.
        labels: of the intervals, one more; 0 is background.

    Returns:
        None if no interval is background.
    """
    bounds = [0.0, *thresholds, 1.0]
    background = [i for i, label in enumerate(labels) if label == 0]
    return (bounds[background[0]], bounds[background[-1] + 1]) if background else None


@ASSIGNER_REGISTRY.register()
class MaxIoUAssigner(Assigner):
    """Each anchor gets the ground truth it overlaps most, labelled by IoU thresholds.

    This is Detectron2's ``Matcher``, ties included, with one exception. For a ground truth that
    overlaps no anchor the best IoU is 0, and ``Matcher`` makes every anchor with IoU 0 a
    low-quality match, flooding the image with positives. Here such a box gets no anchor.

    Args:
        num_classes: K.
        iou_thresholds: positive, ascending bounds of half-open IoU intervals, e.g. ``[0.4, 0.5]``.
        iou_labels: label of each interval, one more than thresholds: 1 (foreground), 0
            (background) or -1 (ignored). The first, which also applies to images without ground
            truth, must not be 1.
        allow_low_quality: also make an anchor foreground if no other anchor has a higher IoU with
            some ground truth.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        iou_thresholds: Annotated[
            Sequence[float], Option("ascending IoU thresholds", source="RetinaNet, section 4")
        ] = (0.4, 0.5),
        iou_labels: Annotated[
            Sequence[int],
            Option(
                "labels below, between and above the thresholds: 1 foreground, 0 background, "
                "-1 ignored"
            ),
        ] = (0, -1, 1),
        allow_low_quality: Annotated[
            bool,
            Option(
                "also make the best anchors of each object foreground, whatever their IoU",
                source="Faster R-CNN, section 3.1.2",
            ),
        ] = True,
    ) -> None:
        ascending = sorted(iou_thresholds) == list(iou_thresholds)
        if not iou_thresholds or not ascending or iou_thresholds[0] <= 0:
            raise ValueError(
                f"IOU_THRESHOLDS must be positive and ascending, got {list(iou_thresholds)}"
            )
        known = set(iou_labels) <= {-1, 0, 1}
        if len(iou_labels) != len(iou_thresholds) + 1 or not known or iou_labels[0] == 1:
            raise ValueError(
                f"IOU_LABELS must be {len(iou_thresholds) + 1} values of -1, 0, 1, the first "
                f"not 1, got {list(iou_labels)}"
            )
        self.num_classes = num_classes
        self.iou_thresholds = list(iou_thresholds)
        self.iou_labels = list(iou_labels)
        self.allow_low_quality = allow_low_quality

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
        match = ops.match_anchors(
            anchors,
            ground_truth.boxes,
            ground_truth.counts,
            thresholds=self.iou_thresholds,
            labels=self.iou_labels,
            allow_low_quality=self.allow_low_quality,
        )
        # An extra row of class K serves all anchors that are not foreground.
        foreground = match.label == 1
        # Python numbers rather than a tensor, whose copy would make the host wait for the GPU.
        firsts = zip(match.gt_index, ground_truth.offsets, strict=False)
        owners = torch.stack([index + first for index, first in firsts])
        rows = torch.where(foreground, owners, len(ground_truth.boxes))
        classes = F.pad(ground_truth.classes, (0, 1), value=self.num_classes)
        boxes = F.pad(ground_truth.boxes, (0, 0, 0, 1))
        return Targets(
            labels=torch.where(match.label == -1, IGNORE, classes[rows]),
            matched_gt_boxes=torch.where(foreground[..., None], boxes[rows], anchors),
            matched_ious=match.ious,
            gt_index=match.gt_index,
            num_classes=self.num_classes,
            background_ious=background_range(self.iou_thresholds, self.iou_labels),
        )
