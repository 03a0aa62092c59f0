"""Detections of several models, or of several views of an image, as one set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances

from resobj_d2.ops import weighted_box_fusion

__all__ = ["fuse_detections"]


def fuse_detections(
    detections: Sequence[Instances],
    *,
    weights: Sequence[float] | None = None,
    iou_threshold: float = 0.55,
    confidence: str = "mean",
    max_detections: int = 100,
) -> Instances:
    """One image's detections by several models, fused by weighted box fusion.

    Args:
        detections: of each model, for the same image and classes, with ``pred_boxes``, ``scores``
            and ``pred_classes``; as a :class:`.predictor.Predictor` gives them.
        weights: positive factors of the models' scores; default 1.
        iou_threshold, confidence: see :func:`resobj_d2.ops.weighted_box_fusion`.
        max_detections: the best are kept.

    Returns:
        Instances with ``pred_boxes``, ``scores`` and ``pred_classes``, best first.

    Raises:
        ValueError: no detections, images of different sizes, or other than one weight for each.
    """
    if not detections:
        raise ValueError("fuse_detections needs the detections of at least one model")
    sizes = {tuple(found.image_size) for found in detections}
    if len(sizes) > 1:
        raise ValueError(
            f"fuse_detections needs detections in the same image, got sizes {sorted(sizes)}"
        )
    if weights is not None and len(weights) != len(detections):
        raise ValueError(
            f"fuse_detections needs one weight for each of {len(detections)} models, "
            f"got {len(weights)}"
        )
    if max_detections < 1:
        raise ValueError(f"max_detections must be at least 1, got {max_detections}")
    classes = [found.pred_classes for found in detections]
    fused = weighted_box_fusion(
        torch.cat([found.pred_boxes.tensor for found in detections]),
        torch.cat([found.scores for found in detections]),
        torch.cat(classes),
        torch.cat([torch.full_like(own, model) for model, own in enumerate(classes)]),
        model_weights=[1.0] * len(detections) if weights is None else weights,
        iou_threshold=iou_threshold,
        confidence=confidence,
    )
    result = Instances(detections[0].image_size)
    result.pred_boxes = Boxes(fused.boxes[:max_detections])
    result.scores = fused.scores[:max_detections]
    result.pred_classes = fused.idxs[:max_detections]
    return result
