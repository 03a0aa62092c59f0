"""Average precision of all classes at once, as COCO defines it."""

from __future__ import annotations

import numpy as np

from .evaluation_set import EvaluationSet
from .matching import Matches, Pairs, match, overlapping_pairs

__all__ = ["IOU_THRESHOLDS", "average_precision", "mean_precision", "precision_by_threshold"]

IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""COCO's ten thresholds of IoU."""

_RECALLS = np.linspace(0.0, 1.0, 101)


def average_precision(
    classes: np.ndarray,
    scores: np.ndarray,
    correct: np.ndarray,
    positives: np.ndarray,
) -> np.ndarray:
    """COCO's average precision: the mean over 101 recalls of the best precision at or beyond each.

    Args:
        classes: (n,) int64 of the detections that are judged; of equal scores the first counts
            first.
        scores: (n,) their scores.
        correct: (n,) bool, whether they are true positives.
        positives: (K,) number of objects to find in each class.

    Returns:
        (K,) from 0 to 1; NaN for classes without objects.
    """
    order = np.lexsort((-scores, classes))
    return ranked_precision(classes[order], correct[order], np.ones(len(order)), positives)


def ranked_precision(
    classes: np.ndarray, correct: np.ndarray, weights: np.ndarray, positives: np.ndarray
) -> np.ndarray:
    """:func:`average_precision` of detections that are in order, each counted ``weights`` times.

    Args:
        classes: (n,) int64, ascending, and best first within a class.
        correct: (n,) bool.
        weights: (n,) not negative.
        positives: (K,) objects to find, counted as often as their images.
    """
    hits = np.flatnonzero(correct & (positives[classes] > 0))
    owner = classes[hits]
    # Counts from the start of the class. Precision only matters where it has its peaks: at hits.
    seen = np.r_[0.0, np.cumsum(weights)]
    begin = np.searchsorted(classes, owner)
    found = cumulated(weights[hits], owner)
    return area_under_peaks(owner, found, seen[hits + 1] - seen[begin], positives)


def cumulated(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Cumulative sums that start anew in every group; equal groups are adjacent."""
    sums = np.cumsum(values)
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]][: len(groups)])
    before = (sums - values)[starts]
    return sums - np.repeat(before, np.diff(np.r_[starts, len(groups)]))


def area_under_peaks(
    groups: np.ndarray, found: np.ndarray, seen: np.ndarray, positives: np.ndarray
) -> np.ndarray:
    """Average precision from the true positives alone.

    Args:
        groups: (h,) int64, ascending: the class of each true positive, best first within a class.
        found: (h,) how many true positives there are up to and with it.
        seen: (h,) how many detections.
        positives: (G,) objects to find.

    Returns:
        (G,) from 0 to 1; NaN for groups without objects.
    """
    result = np.where(positives > 0, 0.0, np.nan)
    if not len(groups):
        return result
    precision = np.divide(found, seen, out=np.zeros(len(groups)), where=seen > 0)
    # The best precision at this recall or beyond. What is added keeps the groups apart.
    apart = 2.0 * (groups[-1] - groups)
    best = np.maximum.accumulate((precision + apart)[::-1])[::-1] - apart
    # Every recall level belongs to the first hit that reaches it.
    totals = positives[groups]
    recall = np.divide(found, totals, out=np.zeros(len(groups)), where=totals > 0)
    reached = np.searchsorted(_RECALLS, recall, side="right")
    first = np.r_[True, groups[1:] != groups[:-1]]
    levels = np.where(first, reached, np.diff(reached, prepend=0))
    return result + np.bincount(groups, best * levels, minlength=len(positives)) / len(_RECALLS)


def precision_of_matches(
    data: EvaluationSet, matches: Matches, *, ignored: np.ndarray | None = None
) -> np.ndarray:
    """(K,) average precision after a matching with the same ``ignored`` objects."""
    judged = ~matches.ignored
    found = data.detections
    return average_precision(
        found.classes[judged],
        found.scores[judged],
        matches.correct[judged],
        data.positives(ignored),
    )


def precision_by_threshold(
    data: EvaluationSet,
    *,
    pairs: Pairs | None = None,
    thresholds: tuple[float, ...] = IOU_THRESHOLDS,
    ignored: np.ndarray | None = None,
    outside: np.ndarray | None = None,
) -> np.ndarray:
    """Average precision of every class at every threshold of IoU.

    Args:
        data: ground truth and detections.
        pairs: those that overlap by at least the lowest threshold; computed by default.
        thresholds: of IoU.
        ignored, outside: as in :func:`.matching.match`.

    Returns:
        (T, K) from 0 to 1; NaN for classes without objects.
    """
    pairs = overlapping_pairs(data, min(thresholds)) if pairs is None else pairs
    rows = [
        precision_of_matches(
            data, match(data, pairs, t, ignored=ignored, outside=outside), ignored=ignored
        )
        for t in thresholds
    ]
    return np.array(rows).reshape(len(thresholds), data.num_classes)


def mean_precision(values: np.ndarray) -> float | None:
    """Mean in percent of those classes (and thresholds) that have objects; None for none."""
    valid = values[~np.isnan(values)]
    return float(100 * valid.mean()) if valid.size else None
