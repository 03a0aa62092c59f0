"""Non-maximum suppression in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from .pairwise_box_iou import pairwise_box_iou


def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, max_output: int = -1
) -> Tensor:
    """See :func:`resobj_d2.ops.batched_nms`."""
    order = _by_descending_score(scores)
    boxes, idxs = boxes[order], idxs[order]
    alive = torch.ones_like(order, dtype=torch.bool)
    kept: list[int] = []
    for i in range(len(order)):
        if len(kept) == max_output:
            break
        if alive[i]:
            kept.append(i)
            # Compared in float64, so that the threshold is not rounded.
            overlaps = pairwise_box_iou(boxes[i : i + 1], boxes[i + 1 :])[0].double()
            alive[i + 1 :] &= (idxs[i + 1 :] != idxs[i]) | (overlaps <= iou_threshold)
    return order[kept]


def batched_nms_padded(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, max_output: int = -1
) -> tuple[Tensor, Tensor]:
    """See :func:`resobj_d2.ops.batched_nms_padded`."""
    kept = batched_nms(boxes, scores, idxs, iou_threshold, max_output)
    return _pad(kept, len(boxes), max_output, -1), kept.new_tensor(len(kept))


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    method: str,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    max_output: int = -1,
) -> tuple[Tensor, Tensor]:
    """See :func:`resobj_d2.ops.soft_nms`."""
    left = scores.isfinite()
    kept: list[int] = []
    new_scores: list[Tensor] = []
    for _ in range(len(scores)):
        candidates = torch.where(left, scores, -torch.inf)
        # The first maximum; argmax may return any of them.
        best = int((candidates == candidates.max()).nonzero()[0])
        if len(kept) == max_output or candidates[best].double() < min_score:
            break
        kept.append(best)
        new_scores.append(scores[best])
        overlaps = pairwise_box_iou(boxes[best : best + 1], boxes)[0]
        if method == "linear":
            weights = torch.where(overlaps.double() >= iou_threshold, 1 - overlaps, 1.0)
        else:
            weights = torch.exp(-overlaps * overlaps / sigma)
        scores = torch.where(idxs == idxs[best], scores * weights, scores)
        left[best] = False
    keep = torch.tensor(kept, dtype=torch.int64, device=boxes.device)
    return keep, torch.stack(new_scores) if kept else scores.new_empty(0)


def soft_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    method: str,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    max_output: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`resobj_d2.ops.soft_nms_padded`."""
    kept, new_scores = soft_nms(
        boxes, scores, idxs, method, iou_threshold, sigma, min_score, max_output
    )
    return (
        _pad(kept, len(boxes), max_output, -1),
        _pad(new_scores, len(boxes), max_output, 0),
        kept.new_tensor(len(kept)),
    )


def matrix_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, kernel: str, sigma: float) -> Tensor:
    """See :func:`resobj_d2.ops.matrix_nms`."""
    order = _by_descending_score(torch.where(scores.isfinite(), scores, torch.nan))
    if len(order) == 0:
        return torch.zeros_like(scores)
    same_class = idxs[order][:, None] == idxs[order]
    # Row i, column j: IoU of box j with the higher-scored box i of its class, else 0.
    overlaps = torch.where(same_class, pairwise_box_iou(boxes[order], boxes[order]), 0.0).triu(1)
    worst = overlaps.amax(dim=0)[:, None]
    if kernel == "linear":
        # A box fully covered by a better one (worst = 1) is certainly suppressed: no decay.
        decays = torch.where(worst < 1, (1 - overlaps) / (1 - worst), 1.0)
    else:
        decays = torch.exp((worst * worst - overlaps * overlaps) / sigma)
    earlier = torch.ones_like(same_class).triu(1) & same_class
    decay = torch.where(earlier, decays, 1.0).amin(dim=0)
    return torch.zeros_like(scores).scatter(0, order, scores[order] * decay)


def _pad(rows: Tensor, count: int, max_output: int, value: float) -> Tensor:
    padded = rows.new_full((count if max_output < 0 else max_output,), value)
    padded[: len(rows)] = rows
    return padded


def _by_descending_score(scores: Tensor) -> Tensor:
    """Indices by descending score, ties by index, without those of NaN scores."""
    order = scores.argsort(descending=True, stable=True)
    return order[~scores[order].isnan()]
