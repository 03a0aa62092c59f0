"""Weighted box fusion: the detections of several models become one set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference
from ._checks import (
    compute_dtype,
    require_floating,
    require_integer,
    require_positive,
    require_same_device,
)
from ._library import define_op

OP = "weighted_box_fusion"
CONFIDENCES = ("mean", "sum", "max")


class FusedBoxes(NamedTuple):
    """Result of :func:`weighted_box_fusion`, best first; nothing in it carries a gradient."""

    boxes: Tensor  # (D, 4)
    scores: Tensor  # (D,)
    idxs: Tensor  # (D,) int64, the class


def _fake(boxes, scores, idxs, models, model_weights, iou_threshold, confidence):
    count = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(count, 4), scores.new_empty(count), idxs.new_empty(count)


define_op(
    "weighted_box_fusion",
    reference=reference.weighted_box_fusion,
    fake=_fake,
    no_vmap="its items may have different numbers of fused boxes",
)


def weighted_box_fusion(
    boxes: Tensor,  # (C, 4)
    scores: Tensor,  # (C,)
    idxs: Tensor,  # (C,)
    models: Tensor,  # (C,)
    *,
    model_weights: Sequence[float],
    iou_threshold: float = 0.55,
    confidence: str = "mean",
) -> FusedBoxes:
    """Weighted box fusion (Solovyev et al., Image and Vision Computing 2021, Section 3).

    In order of descending score, a box joins the cluster of its class with whose fused box it has
    the highest IoU (ties: the first), if that is above ``iou_threshold``; else it starts a new
    cluster. The fused box is the mean of the cluster's boxes, weighted by their scores. N models,
    C boxes, D clusters.

    Args:
        boxes: (C, 4) XYXY in any one unit, floating point: all models' detections in an image. A
            box with a NaN coordinate, without area or with swapped corners overlaps nothing, so it
            stays as it is.
        scores: (C,) floating point. A box whose score is 0, negative, NaN or infinite is dropped.
        idxs: (C,) integers, the class of each box; any value.
        models: (C,) integers from 0 to N - 1, the model of each box.
        model_weights: N positive factors of the models' scores, for example ``[1.0, 1.0]`` for two
            models of equal weight.
        iou_threshold: 0 or more.
        confidence: the score of a cluster of T boxes with weighted scores c: ``"mean"``:
            ``mean(c) * min(T, N) / sum(model_weights)``, so that what few models find scores lower;
            ``"sum"``: the same with T in place of min(T, N), which can exceed 1; ``"max"``:
            ``max(c) / max(model_weights)``, as in the authors' code.

    Returns:
        :class:`FusedBoxes` by descending score, ties by the clusters' best boxes; float64 if
        ``boxes`` or ``scores`` is, else float32. It is computed on the CPU, box by box.

    Raises:
        TypeError: ``boxes`` or ``scores`` is not floating point, or ``idxs`` or ``models`` is not
            integer.
        ValueError: a shape, a device or an option is wrong, or ``models`` is out of range.
    """
    require_floating(OP, boxes=boxes, scores=scores)
    require_integer(OP, idxs=idxs, models=models)
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{OP}: boxes must have shape (number, 4), got {tuple(boxes.shape)}")
    for name, value in (("scores", scores), ("idxs", idxs), ("models", models)):
        if value.dim() != 1 or value.shape[0] != boxes.shape[0]:
            raise ValueError(
                f"{OP}: {name} must have shape ({boxes.shape[0]},), one for each box, "
                f"got {tuple(value.shape)}"
            )
    require_same_device(OP, boxes=boxes, scores=scores, idxs=idxs, models=models)
    dtype = compute_dtype(boxes, scores)
    weights = [float(weight) for weight in model_weights]
    if not weights:
        raise ValueError(f"{OP}: model_weights must have one weight for each model, got none")
    for i, weight in enumerate(weights):
        require_positive(OP, dtype, **{f"model_weights[{i}]": weight})
    if not iou_threshold >= 0:
        raise ValueError(f"{OP}: iou_threshold must be 0 or more, got {iou_threshold}")
    if confidence not in CONFIDENCES:
        raise ValueError(
            f"{OP}: confidence must be one of {', '.join(CONFIDENCES)}, got {confidence!r}"
        )
    return FusedBoxes(
        *torch.ops.resobj_d2.weighted_box_fusion(
            boxes.to(dtype),
            scores.to(dtype),
            idxs.long(),
            models.long(),
            weights,
            iou_threshold,
            confidence,
        )
    )
