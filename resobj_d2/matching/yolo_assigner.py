"""YOLOv3's label assignment."""

from __future__ import annotations

from itertools import accumulate
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from resobj_d2 import ops
from resobj_d2.options import Option
from resobj_d2.structures import IGNORE, GroundTruth, Priors, StagePrediction, Targets

from .base import Assigner, predicted_boxes
from .build import ASSIGNER_REGISTRY
from .ground_truth_owners import anchor_owners

__all__ = ["YOLOAssigner"]


@ASSIGNER_REGISTRY.register()
class YOLOAssigner(Assigner):
    """One responsible anchor for each ground truth (Redmon and Farhadi, "YOLOv3", section 2.1).

    Among the anchors of all levels, at the cells that contain the box's centre, it is the one whose
    shape has the highest IoU with the box's when both are aligned (ties: the first). All other
    anchors are background, or ignored if the box they currently predict overlaps some ground truth
    by more than ``ignore_iou``. If two ground truths have the same responsible anchor, the later
    one wins (Darknet trains the anchor's class as both). A ground truth has none if it has no area
    or its centre lies outside the network input.

    ``Targets.matched_ious`` are the IoUs of the predicted boxes. ``box_weights`` are
    ``2 - w h / (W H)`` of the ground truth, for a network input of W x H pixels, which gives small
    boxes up to twice the weight of large ones (Darknet); at least 1, for boxes beyond the input.

    Args:
        num_classes: K.
        ignore_iou: see above.
        weighs_boxes: False to omit ``box_weights``, as with the IoU and GIoU losses, which do not
            depend on the size of a box.
    """

    needs_predictions = True
    weighs_by_size = True

    def __init__(
        self,
        *,
        num_classes: int,
        ignore_iou: Annotated[
            float,
            Option("background is ignored if its predicted box overlaps an object more than this"),
        ] = 0.7,
        weighs_boxes: Annotated[
            bool,
            Option(
                "small boxes get up to twice the box loss; set to False for IoU and GIoU losses",
                source="Darknet",
            ),
        ] = True,
    ) -> None:
        if not 0 < ignore_iou <= 1:
            raise ValueError(f"ASSIGNER.IGNORE_IOU must be in (0, 1], got {ignore_iou}")
        self.num_classes = num_classes
        self.ignore_iou = ignore_iou
        self.weighs_boxes = weighs_boxes

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
            prediction: with ``boxes`` (N, R, 4).
        """
        match = ops.match_anchors(
            predicted_boxes(self, prediction), ground_truth.boxes, ground_truth.counts,
            thresholds=[1.0], labels=[0, 0], allow_low_quality=False,
        )  # fmt: skip
        responsible = _responsible(priors, ground_truth.boxes)
        owner, rows = anchor_owners(responsible, ground_truth, len(priors.boxes))
        owned = owner >= 0
        classes = F.pad(ground_truth.classes, (0, 1), value=self.num_classes)
        # The extra last row is for anchors without a ground truth; its weight is never used.
        boxes = F.pad(ground_truth.boxes, (0, 0, 0, 1))
        ignored = ~owned & (match.ious > self.ignore_iou)
        return Targets(
            labels=torch.where(ignored, IGNORE, classes[rows]),
            matched_gt_boxes=torch.where(owned[..., None], boxes[rows], anchors),
            matched_ious=match.ious,
            gt_index=torch.where(owned, owner, match.gt_index),
            num_classes=self.num_classes,
            box_weights=_box_weights(boxes, priors.input_size)[rows] if self.weighs_boxes else None,
            background_ious=(0.0, self.ignore_iou),
        )


def _box_weights(boxes: Tensor, input_size: tuple[int, int]) -> Tensor:
    height, width = input_size
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return (2 - area / (height * width)).clamp(min=1)


def _responsible(priors: Priors, boxes: Tensor) -> Tensor:
    """(M,) the anchor responsible for each box (M, 4); R if none."""
    starts = [0, *accumulate(priors.anchors_per_level)]
    # Every cell has the anchor shapes of the first one.
    cells = [
        priors.boxes[start : start + count]
        for start, count in zip(starts, priors.num_anchors, strict=False)
    ]
    shapes = torch.cat(cells)
    shapes = shapes[:, 2:] - shapes[:, :2]
    size = boxes[:, 2:] - boxes[:, :2]
    shared = torch.minimum(size[:, None], shapes).prod(dim=-1)
    union = size.prod(dim=-1)[:, None] + shapes.prod(dim=-1) - shared
    best = (shared / union).argmax(dim=1)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2

    result = torch.full_like(best, len(priors.boxes))
    first = 0
    levels = zip(starts, priors.num_anchors, priors.map_sizes, priors.strides, strict=False)
    for start, count, (height, width), stride in levels:
        x, y = torch.floor(centre / stride).unbind(dim=1)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        usable = inside & (size > 0).all(dim=1) & (best >= first) & (best < first + count)
        cell = torch.where(usable, y * width + x, 0).long()
        result = torch.where(usable, start + cell * count + best - first, result)
        first += count
    return result
