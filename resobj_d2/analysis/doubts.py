"""What about detections was probably not meant: said by every command that reads them."""

from __future__ import annotations

import numpy as np

from resobj_d2.process import agreeing, counted

from .evaluation_set import EvaluationSet

__all__ = ["are_probabilities", "doubts"]

_OUTSIDE = 0.02  # of a picture's side that a box may reach beyond it
_SOME, _ALL = 0.1, 0.99  # of all boxes
_MOST = 0.5  # of the pictures with objects


def doubts(data: EvaluationSet) -> list[str]:
    """Sentences, the most harmful first; none for detections as they should be.

    Args:
        data: ground truth and detections.
    """
    if not len(data.detections):
        return ["There are no detections."] if data.image_ids else []
    found = []
    if _reads_as_corners(data):
        found.append(
            "Boxes reach beyond their pictures and would fit as x0, y0, x1, y1: a COCO results "
            "json has x, y, width, height."
        )
    if _reads_as_parts(data):
        highest = data.detections.boxes.max()
        found.append(
            f"Boxes have no number above {highest:.4g}, as if they were parts of the picture's "
            "sides: a COCO results json has pixels of the original picture."
        )
    with_objects = np.unique(data.objects.images[~data.objects.ignored])
    without = len(np.setdiff1d(with_objects, data.detections.images))
    if without > _MOST * len(with_objects):
        found.append(
            f"{without} of {counted(len(with_objects), 'picture')} with objects "
            f"{agreeing(without, 'have')} no detections at all, and all their objects count as "
            "missed: do the detections belong to this dataset, and are they complete?"
        )
    repeated = _repeated(data)
    if repeated > _SOME * len(data.detections):
        found.append(
            f"{repeated} of {counted(len(data.detections), 'detection')} "
            f"{agreeing(repeated, 'repeat')} another one of the same picture, class and box, and "
            "count as wrong: were results joined that overlap?"
        )
    if not are_probabilities(data.detections.scores):
        low, high = data.detections.scores.min(), data.detections.scores.max()
        found.append(
            f"Scores go from {low:.4g} to {high:.4g}, not from 0 to 1: what only ranks them, as AP "
            "does, holds, but `resobj-d2 predict` takes no limits outside of 0 to 1."
        )
    return found


def are_probabilities(scores: np.ndarray) -> bool:
    """Whether all scores are in 0..1.

    Args:
        scores: (D,) of any detections.
    """
    return bool(((scores >= 0) & (scores <= 1)).all())


def _repeated(data: EvaluationSet) -> int:
    """How many detections have the picture, class and box of another one before them."""
    one = data.detections
    columns = np.column_stack((one.boxes, one.classes, one.images))
    rows = columns[np.lexsort(columns.T)]
    return int((rows[1:] == rows[:-1]).all(axis=1).sum())


def _reads_as_parts(data: EvaluationSet) -> bool:
    sizes = data.sizes[data.detections.images]
    return bool((data.detections.boxes <= 1 + _OUTSIDE).all() and (sizes > 2).all())


def _reads_as_corners(data: EvaluationSet) -> bool:
    boxes, sizes = data.detections.boxes, data.sizes[data.detections.images]
    room = sizes * (1 + _OUTSIDE)
    outside = (boxes[:, :2] + boxes[:, 2:] > room).any(axis=1)
    as_corners = ((boxes[:, 2:] >= boxes[:, :2]) & (boxes[:, 2:] <= room)).all(axis=1)
    return bool(outside.mean() > _SOME and as_corners.mean() >= _ALL)
