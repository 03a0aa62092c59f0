"""Eager torch code as Detectron2 users write it, for functions that no installed package has."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """(M, 4) and (R, 4) to (M, R)."""
    area1, area2 = area(first), area(second)
    top_left = torch.maximum(first[:, None, :2], second[:, :2])
    bottom_right = torch.minimum(first[:, None, 2:], second[:, 2:])
    inter = (bottom_right - top_left).clamp(min=0).prod(dim=2)
    return torch.where(inter > 0, inter / (area1[:, None] + area2 - inter), 0.0)


def aligned_iou(first: Tensor, second: Tensor) -> Tensor:
    """(P, 4) and (P, 4) to (P,)."""
    top_left = torch.maximum(first[:, :2], second[:, :2])
    bottom_right = torch.minimum(first[:, 2:], second[:, 2:])
    inter = (bottom_right - top_left).clamp(min=0).prod(dim=1)
    return inter / (area(first) + area(second) - inter)


def area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def match(anchors: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Row of the best box and label of each anchor by RetinaNet's rule, without indexing.

    It therefore compiles to a single graph.
    """
    ious = pairwise_iou(gt_boxes, anchors)
    best, index = ious.max(dim=0)
    kind = torch.where(best >= 0.5, 1, torch.where(best >= 0.4, -1, 0))
    low_quality = (ious == ious.amax(dim=1, keepdim=True)).any(dim=0)
    return index, torch.where(low_quality, 1, kind).to(torch.int8)


def residual_losses_masked(logits: Tensor, residuals: Tensor, labels: Tensor) -> Tensor:
    """Residual Objectness, Algorithm 1: (T + 1,) sums, with everything multiplied by a mask."""
    valid, positive = labels >= 0, labels == 1
    target = positive.to(logits.dtype)

    def loss(values: Tensor, mask: Tensor) -> Tensor:
        return (F.binary_cross_entropy_with_logits(values, target, reduction="none") * mask).sum()

    losses = [loss(logits, valid)]
    objectness = logits.detach()
    for residual in residuals:
        lowest = torch.where(positive, objectness, math.inf).amin(dim=1, keepdim=True)
        refined = objectness + residual
        losses.append(loss(refined, valid & (objectness >= lowest)))
        objectness = refined.detach()
    return torch.stack(losses)


def residual_losses_indexed(logits: Tensor, residuals: Tensor, labels: Tensor) -> Tensor:
    """The same, with the anchors that count selected by a boolean index."""
    valid, positive = labels >= 0, labels == 1
    target = positive.to(logits.dtype)

    def loss(values: Tensor, mask: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(values[mask], target[mask], reduction="sum")

    losses = [loss(logits, valid)]
    objectness = logits.detach()
    for residual in residuals:
        lowest = [o[p].min() if p.any() else o.new_tensor(math.inf)
                  for o, p in zip(objectness, positive, strict=True)]  # fmt: skip
        refined = objectness + residual
        losses.append(loss(refined, valid & (objectness >= torch.stack(lowest)[:, None])))
        objectness = refined.detach()
    return torch.stack(losses)


def balanced_l1(pred: Tensor, target: Tensor, alpha: float = 0.5, gamma: float = 1.5) -> Tensor:
    """Libra R-CNN, Eq. 8 and 9, summed."""
    b = math.exp(gamma / alpha) - 1
    x = (pred - target).abs()
    inner = alpha / b * (b * x + 1) * torch.log(b * x + 1) - alpha * x
    return torch.where(x < 1, inner, gamma * x + gamma / b - alpha).sum()


def level_candidates(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    objectness: Tensor,
    decode,
    num_classes: int,
    score_thresh: float,
    topk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and classes of one level of one image, as Detectron2's RetinaNet finds them.

    Its maps are (1, A * K, H, W), (1, A * 4, H, W) and (1, A, H, W); the score is the product of
    class probability and objectness.
    """
    probabilities = per_anchor(logits, num_classes).sigmoid_()
    scores = (probabilities * per_anchor(objectness, 1).sigmoid_()).flatten()
    candidates = torch.nonzero(scores > score_thresh)[:, 0]
    scores, order = scores[candidates].sort(descending=True)
    candidates, scores = candidates[order[:topk]], scores[:topk]
    rows = candidates // num_classes
    boxes = decode(per_anchor(deltas, 4)[rows], anchors[rows])
    return boxes, scores, candidates % num_classes


def per_anchor(maps: Tensor, channels: int) -> Tensor:
    """(1, A * channels, H, W) to (H * W * A, channels), a copy."""
    _, _, height, width = maps.shape
    return maps.view(-1, channels, height, width).permute(2, 3, 0, 1).reshape(-1, channels)
