"""Weighted box fusion, box by box. It has no kernel: this is the operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

OP = "weighted_box_fusion"


def weighted_box_fusion(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    models: Tensor,
    model_weights: Sequence[float],
    iou_threshold: float,
    confidence: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`resobj_d2.ops.weighted_box_fusion`."""
    device = boxes.device
    # Each box depends on those before: on the host that is faster than on any device.
    boxes, scores, idxs, models = (x.cpu() for x in (boxes, scores, idxs, models))
    if len(models) and not 0 <= int(models.min()) <= int(models.max()) < len(model_weights):
        raise ValueError(
            f"{OP}: models must be from 0 to {len(model_weights) - 1}, one for each of "
            f"model_weights, got {int(models.min())} to {int(models.max())}"
        )
    weights = boxes.new_tensor(list(model_weights))
    scores = scores * weights[models]
    order = scores.argsort(descending=True, stable=True)
    order = order[(scores[order] > 0) & scores[order].isfinite()]
    clusters = _clusters(boxes[order], scores[order], idxs[order], iou_threshold)
    fused, total, highest, counts, classes = clusters
    if confidence == "max":
        fused_scores = highest / weights.max()
    elif confidence == "sum":
        fused_scores = total / weights.sum()
    else:
        capped = counts.clamp(max=len(model_weights)) / counts
        fused_scores = total * capped / weights.sum()
    ranked = fused_scores.argsort(descending=True, stable=True)
    return fused[ranked].to(device), fused_scores[ranked].to(device), classes[ranked].to(device)


def _clusters(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Boxes by descending score, each added to the cluster whose mean it overlaps most.

    Returns the (D, 4) means, and (D,) the sum and the maximum of the scores, the number of boxes
    and the class of each cluster.
    """
    means, classes = torch.empty_like(boxes), torch.empty_like(idxs)
    total, highest = torch.empty_like(scores), torch.empty_like(scores)
    counts = torch.empty_like(idxs)
    number = 0
    for box, score, idx in zip(boxes, scores, idxs, strict=True):
        best = -1
        if number:
            overlaps = torch.ops.resobj_d2.pairwise_box_iou(box[None], means[:number])[0]
            overlaps = torch.where(classes[:number] == idx, overlaps, -1.0)
            # The first maximum; argmax may return any of them.
            first = int((overlaps == overlaps.max()).nonzero()[0])
            # Compared in float64, so that the threshold is not rounded.
            best = first if overlaps[first].item() > iou_threshold else -1
        if best < 0:
            means[number], classes[number] = box, idx
            total[number], highest[number], counts[number] = score, score, 1
            number += 1
        else:
            total[best] += score
            counts[best] += 1
            means[best] += (box - means[best]) * (score / total[best])
    return means[:number], total[:number], highest[:number], counts[:number], classes[:number]
