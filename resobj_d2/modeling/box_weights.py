"""How much each foreground anchor's box loss counts: ``BOX_LOSS.WEIGHED_BY``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from resobj_d2 import ops
from resobj_d2.losses import ClassLoss, weight_sum
from resobj_d2.matching import centerness
from resobj_d2.structures import StagePrediction, Targets

__all__ = ["BOX_WEIGHTS", "box_weights", "class_targets", "overlaps"]

BOX_WEIGHTS = ("none", "score", "iou", "centerness")
"""What boxes may be weighed by: see :func:`box_weights`."""


def overlaps(boxes: Tensor, targets: Targets) -> Tensor:
    """(N, R) IoU of predicted boxes (N, R, 4) with their objects."""
    matched = targets.matched_gt_boxes
    boxes = boxes.expand_as(matched)
    ious = ops.box_iou_aligned(boxes.reshape(-1, 4), matched.reshape(-1, 4))
    return ious.view(targets.labels.shape)


@torch.no_grad()
def class_targets(targets: Targets, decode: Callable[[], Tensor]) -> tuple[Tensor, Tensor | None]:
    """(N, R) target of the class score at foreground, and the divisor of the class loss.

    The target is the assigner's, or the IoU of the box. An assigner scales its own, so that their
    sum, and not the number of foreground anchors, divides the loss (TOOD's code); otherwise None.

    Args:
        decode: gives the predicted boxes (N, R, 4).
    """
    if targets.quality is None:
        return overlaps(decode(), targets), None
    return targets.quality, weight_sum(targets.quality, targets.foreground)


@torch.no_grad()
def box_weights(
    kind: str,
    *,
    prediction: StagePrediction,
    cls_loss: ClassLoss,
    targets: Targets,
    decode: Callable[[], Tensor],
    by_size: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """(N, R) factor of each anchor's box loss, None for 1, and the divisor of that loss.

    Weighed boxes are averaged: the sum of the weights over the foreground divides the loss, as in
    the code of all these papers. Without weights, and where the assigner's follow the objects'
    size, the divisor is None, for the normaliser's.

    Args:
        kind: "score": the anchor's highest class probability (Generalized Focal Loss, section 3.3);
            "iou": that of its box with its object (VarifocalNet, Eq. 5; PAA's code); "centerness":
            that of its centre in its object (the code of FCOS and ATSS); "none": what the assigner
            says.
        cls_loss: gives the class probabilities.
        decode: gives the predicted boxes (N, R, 4).
        by_size: the assigner's weights follow the objects' size.
    """
    if kind == "score":
        scores = cls_loss.sigmoid_logits(prediction.cls)
        weights: Tensor | None = scores.flatten().amax(dim=-1).float().sigmoid()
    elif kind == "iou":
        weights = overlaps(decode(), targets)
    elif kind == "centerness":
        weights = centerness(prediction.anchors, targets.matched_gt_boxes)
    else:
        weights = targets.box_weights
        if weights is None or by_size:
            return weights, None
    return weights, weight_sum(weights, targets.foreground)
