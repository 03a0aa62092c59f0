"""From the predictions of dense streams to detections, in shapes that do not depend on the data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from resobj_d2.matching import DeltaCoder
from resobj_d2.modeling import DensePostprocess
from resobj_d2.ops import dense_detections
from resobj_d2.structures import LevelMaps

from .suppression import ABSENT, best, highest, keep_greedy, suppressed_scores

__all__ = ["SELECTIONS", "raw_predictions", "select", "select_for_onnx", "select_with_nms"]

Selected = tuple[Tensor, Tensor, Tensor]  # boxes (N, C, 4), scores and classes (N, C)


def select(inputs: Sequence[Mapping[str, Any]], postprocess: DensePostprocess) -> Selected:
    """The detections by this package's operators.

    Args:
        inputs: of each stream, :meth:`resobj_d2.modeling.DenseStream.detection_inputs`.
        postprocess: threshold, limits and suppression.

    Returns:
        Boxes (N, D, 4) in pixels of the network input, not clipped, scores and classes (N, D), best
        first; scores are ``ABSENT`` where there are fewer.
    """
    method, count = postprocess.suppression, postprocess.max_detections
    limits = {"score_thresh": postprocess.score_thresh, "topk": postprocess.topk}
    if len(inputs) == 1 and not method.decays:
        return _present(
            dense_detections(
                **inputs[0], **limits, nms_thresh=method.threshold, max_detections=count
            )
        )
    streams = [
        _present(
            dense_detections(
                **stream,
                **limits,
                nms_thresh=math.inf,
                max_detections=len(stream["cls_logits"]) * postprocess.topk,
            )
        )
        for stream in inputs
    ]
    boxes, scores, classes = (torch.cat(parts, dim=1) for parts in zip(*streams, strict=True))
    scores = suppressed_scores(
        boxes,
        scores,
        classes,
        suppression=method,
        num_classes=inputs[0]["num_classes"],
        min_score=postprocess.score_thresh,
    )
    return best(boxes, scores, classes, count)


def _present(found) -> Selected:
    return found.boxes, torch.where(found.classes >= 0, found.scores, ABSENT), found.classes


def select_with_nms(inputs: Sequence[Mapping[str, Any]], postprocess: DensePostprocess) -> Selected:
    """:func:`select` in torch's operators, but for the suppression."""
    boxes, scores, classes = _candidates(inputs, postprocess)
    scores = suppressed_scores(
        boxes,
        scores,
        classes,
        suppression=postprocess.suppression,
        num_classes=inputs[0]["num_classes"],
        min_score=postprocess.score_thresh,
    )
    return best(boxes, scores, classes, postprocess.max_detections)


def select_for_onnx(inputs: Sequence[Mapping[str, Any]], postprocess: DensePostprocess) -> Selected:
    """:func:`select` in operators that ONNX has too; the suppression must be greedy."""
    boxes, scores, classes = _candidates(inputs, postprocess)
    count, threshold = postprocess.max_detections, postprocess.suppression.threshold
    keep = keep_greedy(boxes, scores, classes, inputs[0]["num_classes"], threshold, count)
    return best(boxes, torch.where(keep, scores, ABSENT), classes, count)


SELECTIONS = {"operator": select, "nms": select_with_nms, "onnx": select_for_onnx}
"""The ways of selection, by name."""


def _candidates(inputs: Sequence[Mapping[str, Any]], postprocess: DensePostprocess) -> Selected:
    """The best of each level of all streams, (N, C) of each."""
    levels = [
        _level(level, stream, postprocess)
        for stream in inputs
        for level in range(len(stream["cls_logits"]))
    ]
    boxes, scores, classes = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
    return boxes, scores, classes


def _level(level: int, stream: Mapping[str, Any], postprocess: DensePostprocess) -> Selected:
    """The ``topk`` best candidates of a level, (N, topk) of each."""
    num_classes, topk = stream["num_classes"], postprocess.topk
    scores = _scores(level, stream)
    scores = torch.where(scores > postprocess.score_thresh, scores, ABSENT)
    # So that a level of any size has `topk` of them.
    flat = torch.nn.functional.pad(scores.flatten(1), (0, topk), value=ABSENT)
    values, index = highest(flat, topk)
    index = torch.where(values > ABSENT, index, 0)
    row, classes = index // num_classes, index % num_classes
    anchors = stream["anchors"][level]
    if anchors.dim() == 2:
        boxes = anchors[row]
    else:
        boxes = anchors.gather(1, row[..., None].expand(-1, -1, 4))
    if stream["deltas"] is not None:
        deltas = _per_anchor(stream["deltas"][level], 4)
        boxes = _coder(stream).decode(boxes, deltas.gather(1, row[..., None].expand(-1, -1, 4)))
    # An infinite number less itself is no number; so is none less itself.
    finite = ((boxes - boxes) == 0).all(dim=2)
    values = torch.where(finite, values, ABSENT)
    return torch.where(finite[..., None], boxes, 0.0), values, classes


def _scores(level: int, stream: Mapping[str, Any]) -> Tensor:
    """(N, R, K), the fused scores of a level."""
    maps = [(stream["cls_logits"][level], stream["num_classes"])]
    maps += [(factor[level], 1) for factor in stream["factor_logits"]]
    factors = [torch.sigmoid(_per_anchor(x, channels).float()) for x, channels in maps]
    return _fused(factors, stream["exponents"], stream["floors"])


def _coder(stream: Mapping[str, Any]) -> DeltaCoder:
    return DeltaCoder(weights=stream["weights"], scale_clamp=stream["scale_clamp"])


def _per_anchor(maps: Tensor, channels: int) -> Tensor:
    """(N, A * channels, H, W) to (N, H * W * A, channels)."""
    return LevelMaps([maps], channels).flatten()


def _fused(
    probabilities: Sequence[Tensor], exponents: Sequence[float], floors: Sequence[float]
) -> Tensor:
    """(N, R, K); see :class:`resobj_d2.modeling.ScoreFusion`. 0 where one is below its floor."""
    score: Tensor | float = 1.0
    for p, exponent in zip(probabilities, exponents, strict=True):
        score = score * (p if exponent == 1 else p**exponent)
    for p, floor in zip(probabilities, floors, strict=True):
        if floor > 0:
            score = torch.where(p >= floor, score, 0.0)
    return score


def raw_predictions(inputs: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """Scores (N, R, K) and boxes (N, R, 4) in pixels of the network input, of all anchors.

    Args:
        inputs: of each stream, :meth:`resobj_d2.modeling.DenseStream.detection_inputs`. Their
            anchors follow each other, level by level.
    """
    scores, boxes = [], []
    for stream in inputs:
        for level in range(len(stream["cls_logits"])):
            scores.append(_scores(level, stream))
            anchors = stream["anchors"][level]
            if stream["deltas"] is not None:
                anchors = _coder(stream).decode(anchors, _per_anchor(stream["deltas"][level], 4))
            boxes.append(anchors)
    return torch.cat(scores, dim=1), torch.cat(boxes, dim=1)
