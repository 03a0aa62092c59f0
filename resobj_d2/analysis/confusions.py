"""Which classes a detector takes for which."""

from __future__ import annotations

import numpy as np

from .evaluation_set import EvaluationSet
from .matching import Pairs, overlapping_pairs
from .tables import Row, name_apart

__all__ = ["background_name", "confusion_matrix", "confusion_table"]


def confusion_table(
    data: EvaluationSet, *, confidence: float = 0.3, threshold: float = 0.5
) -> list[Row]:
    """Which classes are taken for which.

    Detections and objects are paired one to one, by falling IoU: those of the same class first, so
    that a class counts as confused only where no detection has the right one.

    Args:
        data: ground truth and detections.
        confidence: lowest score of the detections that count.
        threshold: lowest IoU of a pair.

    Returns:
        Rows with ``object``, ``detection`` and ``count``, largest first, without those that are 0.
        The object of a false positive and the detection of a missed object are
        :func:`background_name`.
    """
    counts = confusion_matrix(data, confidence=confidence, threshold=threshold)
    names = [*data.class_names, background_name(data)]
    cells = [
        {"object": names[i], "detection": names[j], "count": int(counts[i, j])}
        for i, j in np.argwhere(counts)
    ]
    return sorted(cells, key=lambda row: -row["count"])


def background_name(data: EvaluationSet) -> str:
    """How :func:`confusion_table` names nothing.

    "background", in parentheses where a class has this name.
    """
    return name_apart("background", data.class_names)


def confusion_matrix(
    data: EvaluationSet, *, confidence: float = 0.3, threshold: float = 0.5
) -> np.ndarray:
    """(K + 1, K + 1) numbers for :func:`confusion_table`; rows are of objects, the last background.

    Detections that cover a crowd region or difficult object of their class, and no other object,
    are left out.
    """
    size = data.num_classes
    pairs = overlapping_pairs(data, threshold)
    pairs = pairs.take(data.detections.scores[pairs.detections] >= confidence)
    own = data.detections.classes[pairs.detections]
    same = own == data.objects.classes[pairs.objects]
    ignored = data.objects.ignored[pairs.objects]
    partner = np.full(len(data.detections), -1)
    free = ~data.objects.ignored
    for chosen in (same & ~ignored, ~same & ~ignored):
        _pair_up(pairs.take(chosen), partner, free)
    left_out = data.detections.scores < confidence
    near = np.zeros_like(left_out)
    near[pairs.detections[same & ignored]] = True
    rows = np.flatnonzero(~left_out & ~(near & (partner < 0)))
    classes = np.append(data.objects.classes, size)  # the last for partner -1
    counts = np.zeros((size + 1, size + 1), dtype=np.int64)
    np.add.at(counts, (classes[partner[rows]], data.detections.classes[rows]), 1)
    np.add.at(counts, (data.objects.classes[free], size), 1)
    return counts


def _pair_up(pairs: Pairs, partner: np.ndarray, free: np.ndarray) -> None:
    """Greedily by falling IoU: in each round those pairs that are the best of both sides."""
    order = np.lexsort((pairs.objects, pairs.detections, -pairs.ious))
    detections, objects = pairs.detections[order], pairs.objects[order]
    while True:
        open_ = (partner[detections] < 0) & free[objects]
        detections, objects = detections[open_], objects[open_]
        if not len(detections):
            return
        positions = np.arange(len(detections))
        first = np.isin(positions, np.unique(detections, return_index=True)[1])
        first &= np.isin(positions, np.unique(objects, return_index=True)[1])
        partner[detections[first]] = objects[first]
        free[objects[first]] = False
