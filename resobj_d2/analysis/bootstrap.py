"""Average precision of resampled images: the same detections, each image counted several times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import KINDS, analyze_errors, corrections
from .evaluation_set import EvaluationSet
from .matching import match, overlapping_pairs
from .precision import IOU_THRESHOLDS, area_under_peaks, cumulated

__all__ = ["ResampledErrors", "ResampledPrecision"]


@dataclass(frozen=True, kw_only=True)
class _Judgement:
    """(D,) bool: true positives, and what does not count; (N,) bool: objects that do."""

    correct: np.ndarray
    left_out: np.ndarray
    to_find: np.ndarray


class _Ranking:
    """Detections in one order, judged in several ways, ready to be weighted by image.

    Args:
        data: ground truth and detections.
        classes: (D,) of the detections.
        judgements: of the detections.
    """

    def __init__(
        self, data: EvaluationSet, classes: np.ndarray, judgements: Sequence[_Judgement]
    ) -> None:
        found, objects = data.detections, data.objects
        size = data.num_classes
        rows = np.lexsort((-found.scores, classes))
        hit = np.any([j.correct for j in judgements], axis=0)
        rows = rows[_up_to_last_hit(classes[rows], hit[rows])]
        classes = classes[rows]
        begin = np.searchsorted(classes, np.arange(size))
        self._shape = len(judgements), size
        self._images = found.images[rows]
        hits = [np.flatnonzero(j.correct[rows]) for j in judgements]
        left_out = [np.flatnonzero(j.left_out[rows]) for j in judgements]
        # One group for each judgement and class. Positions are counted from 0 on in each judgement.
        self._groups = np.concatenate([classes[x] + t * size for t, x in enumerate(hits)])
        self._hits = np.concatenate(hits)
        self._begin = begin[classes[self._hits]]
        self._left_out = self._images[np.concatenate(left_out)]
        offsets = np.cumsum([0, *map(len, left_out)])
        before = [offsets[t] + np.searchsorted(left_out[t], x) for t, x in enumerate(hits)]
        firsts = [
            offsets[t] + np.searchsorted(left_out[t], begin[classes[x]]) for t, x in enumerate(hits)
        ]
        self._left_out_before, self._left_out_begin = np.concatenate(before), np.concatenate(firsts)
        to_find = [np.flatnonzero(j.to_find) for j in judgements]
        self._object_groups = np.concatenate(
            [objects.classes[x] + t * size for t, x in enumerate(to_find)]
        )
        self._object_images = objects.images[np.concatenate(to_find)]

    def precision(self, weights: np.ndarray) -> np.ndarray:
        """(judgements, K) average precision, NaN without objects.

        Args:
            weights: (M,) how often each image counts.
        """
        seen = np.r_[0.0, np.cumsum(weights[self._images])]
        left_out = np.r_[0.0, np.cumsum(weights[self._left_out])]
        counts = seen[self._hits + 1] - seen[self._begin]
        counts -= left_out[self._left_out_before] - left_out[self._left_out_begin]
        found = cumulated(weights[self._images[self._hits]], self._groups)
        size = self._shape[0] * self._shape[1]
        positives = np.bincount(self._object_groups, weights[self._object_images], minlength=size)
        return area_under_peaks(self._groups, found, counts, positives).reshape(self._shape)


def _up_to_last_hit(classes: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """(n,) bool: without those after the last true positive of their class, which do not matter."""
    last = np.full(int(classes.max(initial=-1)) + 1, -1)
    positions = np.flatnonzero(hit)
    last[classes[positions]] = positions  # the last one stays
    return np.arange(len(classes)) <= last[classes]


class ResampledPrecision:
    """COCO's AP at each of its thresholds of IoU.

    Args:
        data: ground truth and detections.
    """

    def __init__(self, data: EvaluationSet) -> None:
        pairs = overlapping_pairs(data, IOU_THRESHOLDS[0])
        to_find = ~data.objects.ignored
        matched = [match(data, pairs, t) for t in IOU_THRESHOLDS]
        judgements = [
            _Judgement(correct=m.correct, left_out=m.ignored, to_find=to_find) for m in matched
        ]
        self._ranking = _Ranking(data, data.detections.classes, judgements)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """(10, K) AP from 0 to 1, NaN without objects, of images that count ``weights`` times."""
        return self._ranking.precision(weights)


class ResampledErrors:
    """What every kind of error costs.

    Args:
        data: ground truth and detections.
        threshold: of IoU, from which on a detection is right.
    """

    kinds = (*KINDS, "FP", "FN")
    """The order of the figures."""

    def __init__(self, data: EvaluationSet, threshold: float = 0.5) -> None:
        analysis = analyze_errors(data, threshold=threshold)
        same: dict[str, _Judgement] = {}
        for kind, c in corrections(analysis):
            left_out = np.ones(len(data.detections), dtype=bool)
            left_out[c.kept] = False
            judgement = _Judgement(correct=c.correct, left_out=left_out, to_find=c.to_find)
            if kind == "Cls":  # the only one that changes classes
                self._cls = _Ranking(data, c.classes, [judgement])
            else:
                same[kind] = judgement
        self._others = _Ranking(data, data.detections.classes, list(same.values()))
        self._order = list(same)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """(kinds,) dAP from 0 to 1, of images that count ``weights`` times; NaN without objects."""
        values = dict(zip(self._order, self._others.precision(weights), strict=True))
        values["Cls"] = self._cls.precision(weights)[0]
        present = ~np.isnan(values[""])
        if not present.any():
            return np.full(len(self.kinds), np.nan)
        # A class of whose objects none is left has lost nothing.
        means = {kind: np.nan_to_num(v[present], nan=1.0).mean() for kind, v in values.items()}
        return np.array([means[kind] - means[""] for kind in self.kinds])
