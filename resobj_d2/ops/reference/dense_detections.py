"""Post-processing of a dense detector in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from .nms import batched_nms


def dense_detections(
    cls_logits: list[Tensor],
    deltas: list[Tensor],
    anchors: list[Tensor],
    factor_logits: list[Tensor],
    num_classes: int,
    exponents: list[float],
    floors: list[float],
    score_thresh: float,
    topk: int,
    nms_thresh: float,
    max_detections: int,
    weights: list[float],
    scale_clamp: float,
    image_sizes: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`resobj_d2.ops.dense_detections`."""
    num_images = cls_logits[0].shape[0]
    result = empty_detections(cls_logits[0], num_images, max_detections, len(exponents))
    boxes, scores, classes, factors, rows, counts = result
    boxes.zero_(), scores.zero_(), classes.fill_(-1), factors.zero_(), rows.fill_(-1)
    counts.zero_()
    num_levels = len(cls_logits)
    for image in range(num_images):
        candidates = []
        first_row = 0
        for level in range(num_levels):
            probabilities = [torch.sigmoid(per_anchor(cls_logits[level][image], num_classes))]
            for maps in factor_logits[level::num_levels]:
                probabilities.append(torch.sigmoid(per_anchor(maps[image], 1)))
            score = fused_score(probabilities, exponents, floors)
            row, cls = best_candidates(score, score_thresh, topk)
            box = anchors[level] if anchors[level].dim() == 2 else anchors[level][image]
            box = box[row]
            if deltas:
                own = per_anchor(deltas[level][image], 4)[row]
                box = decode_deltas(box, own, weights, scale_clamp)
            factor = [p[row, cls if p.shape[1] > 1 else 0] for p in probabilities]
            candidates.append(
                (box, score[row, cls], cls, torch.stack(factor, dim=1), row + first_row)
            )
            first_row += len(score)
        merged = [torch.cat(parts) for parts in zip(*candidates, strict=True)]
        box, score, cls = merged[:3]
        finite = torch.nonzero(torch.isfinite(box).all(dim=1))[:, 0]
        # Ties keep this order: the finer level first, then the lower anchor.
        kept = batched_nms(box[finite], score[finite], cls[finite], nms_thresh, max_detections)
        keep = finite[kept]
        counts[image] = len(keep)
        for output, values in zip((boxes, scores, classes, factors, rows), merged, strict=True):
            output[image, : len(keep)] = values[keep]
        if image_sizes:
            height, width = image_sizes[2 * image : 2 * image + 2]
            limit = boxes.new_tensor([width, height, width, height])
            boxes[image] = torch.minimum(boxes[image].clamp(min=0), limit)
    return result


def empty_detections(
    like: Tensor, num_images: int, max_detections: int, num_factors: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Results of the right shape, dtype and device; their values are undefined."""
    shape = (num_images, max_detections)
    return (
        like.new_empty((*shape, 4)),
        like.new_empty(shape),
        like.new_empty(shape, dtype=torch.int64),
        like.new_empty((*shape, num_factors)),
        like.new_empty(shape, dtype=torch.int64),
        like.new_empty((num_images,), dtype=torch.int64),
    )


def per_anchor(maps: Tensor, channels: int) -> Tensor:
    """(A * channels, H, W) to (H * W * A, channels)."""
    _, height, width = maps.shape
    num_anchors = maps.shape[0] // channels
    cells = maps.reshape(num_anchors, channels, height, width).permute(2, 3, 0, 1)
    return cells.reshape(height * width * num_anchors, channels)


def fused_score(probabilities: list[Tensor], exponents: list[float], floors: list[float]) -> Tensor:
    """(R, K) products of powers; 0 if a probability is below its floor, NaN if one is NaN."""
    score = torch.ones_like(probabilities[0])
    above = torch.ones_like(probabilities[0], dtype=torch.bool)
    known = torch.ones_like(above)
    for p, exponent, floor in zip(probabilities, exponents, floors, strict=True):
        score = score * (p if exponent == 1 else p**exponent)
        above &= p >= floor
        known &= ~p.isnan()
    return torch.where(known, torch.where(above, score, 0.0), torch.nan)


def best_candidates(score: Tensor, score_thresh: float, topk: int) -> tuple[Tensor, Tensor]:
    """Rows and classes, each (C,), of the ``topk`` best scores above the threshold, best first.

    Ties are broken by row, then by class.
    """
    passing = torch.nonzero(score > score_thresh)
    values = score[passing[:, 0], passing[:, 1]]
    best = values.sort(descending=True, stable=True).indices[:topk]
    row, cls = passing[best].unbind(dim=1)
    return row, cls


def decode_deltas(
    anchors: Tensor, deltas: Tensor, weights: list[float], scale_clamp: float
) -> Tensor:
    """Boxes (C, 4) from R-CNN deltas; see :class:`resobj_d2.matching.DeltaCoder`."""
    size = anchors[:, 2:] - anchors[:, :2]
    centre = anchors[:, :2] + 0.5 * size
    deltas = torch.stack([x * (1 / w) for x, w in zip(deltas.unbind(1), weights, strict=True)], 1)
    centre = deltas[:, :2] * size + centre
    half = 0.5 * (torch.exp(deltas[:, 2:].clamp(max=scale_clamp)) * size)
    return torch.cat((centre - half, centre + half), dim=1)
