"""Which detection finds which object: COCO's greedy matching over all images at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .evaluation_set import EvaluationSet, ranks

__all__ = ["Matches", "Pairs", "match", "overlapping_pairs"]

_AT_ONCE = 2**21  # pairs whose overlap is computed together: some 200 MB


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """P pairs of a detection and an object of its image, by detection.

    Attributes:
        detections, objects: (P,) rows.
        ious: (P,) IoU; for crowd regions the part of the detection that lies in the region.
    """

    detections: np.ndarray
    objects: np.ndarray
    ious: np.ndarray

    def __len__(self) -> int:
        return len(self.ious)

    def take(self, rows: np.ndarray) -> Pairs:
        """The pairs of these rows."""
        return Pairs(
            detections=self.detections[rows], objects=self.objects[rows], ious=self.ious[rows]
        )


@dataclass(frozen=True, kw_only=True)
class Matches:
    """What became of each detection.

    Attributes:
        objects: (D,) int64 row of the object that it takes, -1 for none.
        ignored: (D,) bool; such detections are neither right nor wrong.
    """

    objects: np.ndarray
    ignored: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """(D,) bool: true positives."""
        return (self.objects >= 0) & ~self.ignored

    @property
    def wrong(self) -> np.ndarray:
        """(D,) bool: false positives."""
        return (self.objects < 0) & ~self.ignored


def overlapping_pairs(data: EvaluationSet, minimum: float) -> Pairs:
    """All pairs of any classes with an IoU of at least ``minimum``, which is above 0."""
    detections, objects = data.detections, data.objects
    counts = np.bincount(objects.images, minlength=len(data.image_ids))
    firsts = np.cumsum(counts) - counts
    partners = counts[detections.images]
    ends = np.cumsum(partners)
    parts = []
    start = 0
    while start < len(detections):
        before = ends[start] - partners[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + _AT_ONCE, side="right")))
        some = np.arange(start, stop)
        rows = np.repeat(some, partners[some])
        offsets = np.arange(len(rows)) - np.repeat(
            ends[some] - partners[some] - before, partners[some]
        )
        columns = firsts[detections.images[rows]] + offsets
        ious = _ious(detections.boxes[rows], objects.boxes[columns], objects.crowd[columns])
        close = ious >= minimum
        parts.append((rows[close], columns[close], ious[close]))
        start = stop
    if not parts:
        empty = np.zeros(0, np.int64)
        return Pairs(detections=empty, objects=empty, ious=np.zeros(0))
    rows, columns, ious = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Pairs(detections=rows, objects=columns, ious=ious)


def _ious(boxes: np.ndarray, others: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    low = np.maximum(boxes[:, :2], others[:, :2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], others[:, :2] + others[:, 2:])
    shared = (high - low).clip(0).prod(axis=1)
    own = boxes[:, 2] * boxes[:, 3]
    union = np.where(crowd, own, own + others[:, 2] * others[:, 3] - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def match(
    data: EvaluationSet,
    pairs: Pairs,
    threshold: float,
    *,
    ignored: np.ndarray | None = None,
    outside: np.ndarray | None = None,
) -> Matches:
    """COCO's matching: best detections first, each takes the free object of its class it fits best.

    An object that needs not be found is taken only if no other is left. The detections of one rank
    in their image and class are matched together, since they share no objects.

    Args:
        data: ground truth and detections.
        pairs: from :func:`overlapping_pairs`, with a minimum of at most ``threshold``.
        threshold: of IoU.
        ignored: (N,) bool objects that need not be found; by default crowd and difficult ones.
        outside: (D,) bool detections that are not judged where they take no object.
    """
    objects, detections = data.objects, data.detections
    ignored = objects.ignored if ignored is None else ignored
    taken_by = np.full(len(detections), -1)
    same = detections.classes[pairs.detections] == objects.classes[pairs.objects]
    pairs = pairs.take(np.flatnonzero(same & (pairs.ious >= min(threshold, 1 - 1e-10))))
    if len(pairs):
        _match_by_rank(data, pairs, ignored, taken_by)
    left_out = (
        (taken_by >= 0) & ignored[taken_by] if len(objects) else np.zeros(len(taken_by), bool)
    )
    if outside is not None:
        left_out |= (taken_by < 0) & outside
    return Matches(objects=taken_by, ignored=left_out)


def _match_by_rank(
    data: EvaluationSet, pairs: Pairs, ignored: np.ndarray, taken_by: np.ndarray
) -> None:
    # Detections without a partner take part in no round.
    candidates, position = np.unique(pairs.detections, return_inverse=True)
    rounds = ranks(data.detections.images[candidates], data.detections.classes[candidates])
    # Within a detection the preferred object is first; of equal ones COCO takes the last.
    keys = (-pairs.objects, -pairs.ious, ignored[pairs.objects], pairs.detections, rounds[position])
    order = np.lexsort(keys)
    pairs, rounds = pairs.take(order), rounds[position][order]
    bounds = np.searchsorted(rounds, np.arange(rounds[-1] + 2))
    free = np.ones(len(data.objects), dtype=bool)
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        chosen = pairs.objects[start:stop]
        rows = pairs.detections[start:stop]
        available = free[chosen]
        chosen, rows = chosen[available], rows[available]
        first = np.r_[True, rows[1:] != rows[:-1]][: len(rows)]
        chosen, rows = chosen[first], rows[first]
        taken_by[rows] = chosen
        free[chosen] = data.objects.crowd[chosen]
