"""Removal of duplicates for a whole batch of candidates, in shapes that do not depend on the data.

An absent candidate has the score :data:`ABSENT` and, for the operators, a box without area, which
overlaps nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from resobj_d2.modeling.suppression import Suppression
from resobj_d2.ops import batched_nms_padded, matrix_nms, soft_nms_padded

__all__ = ["ABSENT", "best", "highest", "keep_greedy", "suppressed_scores"]

ABSENT = -1.0  # below every score, which is a product of probabilities


def suppressed_scores(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    *,
    suppression: Suppression,
    num_classes: int,
    min_score: float,
) -> Tensor:
    """The scores after class-wise suppression.

    Args:
        boxes: (N, C, 4).
        scores: (N, C), ``ABSENT`` for no candidate.
        classes: (N, C) int64 in [0, K); any value for no candidate.
        suppression: the method and its numbers.
        num_classes: K.
        min_score: scores that decay must stay above this.

    Returns:
        (N, C), ``ABSENT`` for candidates that are dropped.
    """
    shape = scores.shape
    present = scores > ABSENT
    # The images of a batch are told apart as classes are.
    groups = classes + num_classes * torch.arange(shape[0], device=boxes.device)[:, None]
    flat_boxes = torch.where(present[..., None], boxes, 0.0).reshape(-1, 4)
    flat_scores, groups = scores.reshape(-1), groups.reshape(-1)
    if suppression.method == "greedy":
        rows, _ = batched_nms_padded(flat_boxes, flat_scores, groups, suppression.threshold)
        decayed = flat_scores.gather(0, rows.clamp(min=0))
        result = _scatter(decayed, rows)
    elif suppression.method == "matrix":
        # The better box of a pair must have a higher score: absent ones come last.
        decayed = matrix_nms(flat_boxes, flat_scores, groups, sigma=suppression.sigma)
        result = torch.where(decayed > min_score, decayed, ABSENT)
    else:
        rows, decayed, _ = soft_nms_padded(
            flat_boxes,
            flat_scores,
            groups,
            method=suppression.method.removeprefix("soft_"),
            iou_threshold=suppression.threshold,
            sigma=suppression.sigma,
            min_score=max(min_score, 0.0),
        )
        result = _scatter(torch.where(decayed > min_score, decayed, ABSENT), rows)
    return torch.where(present, result.reshape(shape), ABSENT)


def _scatter(values: Tensor, rows: Tensor) -> Tensor:
    """(M,) with ``values`` at ``rows``, of which -1 are padding, and ``ABSENT`` elsewhere."""
    target = values.new_full((rows.shape[0] + 1,), ABSENT)
    return target.scatter(0, rows + 1, values)[1:]


# In an exported graph this is one node, which ONNX's NonMaxSuppression takes the place of.
@torch.library.custom_op("resobj_d2_export::keep_greedy", mutates_args=())
def keep_greedy(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    num_classes: int,
    iou_threshold: float,
    max_output: int,
) -> Tensor:
    """(N, C) bool, what greedy class-wise NMS keeps; arguments as :func:`suppressed_scores`.

    Args:
        max_output: at least as many of each class are kept, if there are.
    """
    greedy = Suppression(method="greedy", threshold=iou_threshold)
    kept = suppressed_scores(
        boxes, scores, classes, suppression=greedy, num_classes=num_classes, min_score=0.0
    )
    return kept > ABSENT


@keep_greedy.register_fake
def _(boxes, scores, classes, num_classes, iou_threshold, max_output):
    return torch.empty_like(scores, dtype=torch.bool)


def best(
    boxes: Tensor, scores: Tensor, classes: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` highest scores of each image, best first.

    Args:
        boxes, scores, classes: (N, C, 4), (N, C) and (N, C).

    Returns:
        (N, D, 4), (N, D) and (N, D), with ``ABSENT`` in the scores where there are fewer.
    """
    # So that there are `count` of them in any case.
    scores = torch.nn.functional.pad(scores, (0, count), value=ABSENT)
    scores, index = highest(scores, count)
    index = torch.where(scores > ABSENT, index, 0)
    boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4))
    return boxes, scores, classes.gather(1, index)


def highest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest of each row of (N, C), and where they were; of equal ones the first."""
    if torch.compiler.is_exporting():
        return scores.topk(count, dim=1)  # ONNX's TopK is stable, torch's is not
    values, index = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :count], index[:, :count]
