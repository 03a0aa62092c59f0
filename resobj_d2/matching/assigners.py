"""Label assignment: which anchor is trained as what."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resobj_d2 import ops
from resobj_d2.structures import GroundTruth, Priors, StagePrediction, Targets

from .build import ASSIGNER_REGISTRY

__all__ = ["MaxIoUAssigner"]


@ASSIGNER_REGISTRY.register()
class MaxIoUAssigner:
    """Each anchor gets the ground truth it overlaps most, labelled by IoU thresholds.

    The rule is Detectron2's ``Matcher``, ties included, but for one case: a ground truth that
    overlaps no anchor has a best IoU of 0, and there ``Matcher`` makes every anchor of IoU 0
    a low-quality match of it, i.e. floods the image with positives. Here such a box gets none.

    Args:
        num_classes: K.
        iou_thresholds: ascending bounds of half-open IoU intervals, e.g. ``[0.4, 0.5]``.
        iou_labels: for each interval 1 (foreground), 0 (background) or -1 (ignored);
            one more than there are thresholds.
        allow_low_quality: also make foreground every anchor whose IoU with some ground truth
            is the best any anchor has with it.
    """

    needs_predictions = False

    def __init__(
        self,
        *,
        num_classes: int,
        iou_thresholds: Sequence[float] = (0.4, 0.5),
        iou_labels: Sequence[int] = (0, -1, 1),
        allow_low_quality: bool = True,
    ) -> None:
        if sorted(iou_thresholds) != list(iou_thresholds) or not iou_thresholds:
            raise ValueError(f"IOU_THRESHOLDS must ascend, got {list(iou_thresholds)}")
        if len(iou_labels) != len(iou_thresholds) + 1 or not set(iou_labels) <= {-1, 0, 1}:
            raise ValueError(
                f"IOU_LABELS must be {len(iou_thresholds) + 1} values of -1, 0, 1, "
                f"got {list(iou_labels)}"
            )
        self.num_classes = num_classes
        self.iou_thresholds = list(iou_thresholds)
        self.iou_labels = list(iou_labels)
        self.allow_low_quality = allow_low_quality

    @classmethod
    def from_config(cls, node, num_classes: int) -> MaxIoUAssigner:
        return cls(
            num_classes=num_classes,
            iou_thresholds=node.IOU_THRESHOLDS,
            iou_labels=node.IOU_LABELS,
            allow_low_quality=node.ALLOW_LOW_QUALITY,
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
        offsets = ground_truth.offsets
        rows = []
        for i in range(ground_truth.num_images):
            own = slice(offsets[i], offsets[i + 1])
            image_anchors = anchors if anchors.dim() == 2 else anchors[i]
            rows.append(
                self._assign_image(
                    image_anchors, ground_truth.boxes[own], ground_truth.classes[own]
                )
            )
        labels, boxes, ious, index = (torch.stack(x) for x in zip(*rows, strict=True))
        return Targets(
            labels=labels,
            matched_boxes=boxes,
            matched_ious=ious,
            gt_index=index,
            num_classes=self.num_classes,
        )

    def _assign_image(
        self, anchors: Tensor, boxes: Tensor, classes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Labels (R,), matched boxes (R, 4), IoUs (R,) and ground-truth rows (R,) of one image."""
        if len(boxes) == 0:
            no_match = anchors.new_full((len(anchors),), -1, dtype=torch.long)
            background = torch.full_like(no_match, self.num_classes)
            return background, anchors, anchors.new_zeros(len(anchors)), no_match
        ious = ops.pairwise_box_iou(boxes, anchors)
        best, index = ious.max(dim=0)
        kind = torch.full_like(index, self.iou_labels[0])
        for threshold, label in zip(self.iou_thresholds, self.iou_labels[1:], strict=True):
            kind = torch.where(best >= threshold, label, kind)
        if self.allow_low_quality:
            best_of_gt = ious.amax(dim=1, keepdim=True)
            is_best = ((ious == best_of_gt) & (best_of_gt > 0)).any(dim=0)
            kind = torch.where(is_best, 1, kind)
        foreground = kind == 1
        labels = torch.where(foreground, classes[index], self.num_classes)
        labels = torch.where(kind == -1, -1, labels)
        matched = torch.where(foreground[:, None], boxes[index], anchors)
        return labels, matched, best, index
