"""What each single error costs: how much AP would rise if it alone were corrected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import KINDS, ErrorAnalysis
from .tables import Row

__all__ = ["ErrorCosts", "error_costs"]


@dataclass(frozen=True, kw_only=True)
class ErrorCosts:
    """The cost of every error in points of AP, the mean over the classes with objects.

    AP is here the area under the precision of each true positive, without COCO's envelope and
    levels of recall, whose steps would give most single errors a cost of 0.

    Attributes:
        analysis: kinds of the errors.
        detections: (D,) what AP gains if this false positive vanishes; 0 for others.
        objects: (N,) what AP gains if this missed object is found before all others; 0 for others.
    """

    analysis: ErrorAnalysis
    detections: np.ndarray
    objects: np.ndarray

    def error_table(self, most: int | None = None) -> list[Row]:
        """The errors, the most expensive first.

        Args:
            most: number of rows; None for all.

        Returns:
            Rows with ``image`` (the dataset's id), ``file``, ``error`` (one of ``KINDS``; for a
            missed object "Miss", or "FN" where a Cls or Loc error is to blame), ``class``,
            ``score`` (None for missed objects), ``box`` [x, y, width, height], ``cost``.
        """
        data = self.analysis.data
        costs = np.concatenate((self.detections, self.objects))
        order = np.argsort(-costs, kind="stable")
        order = order[costs[order] > 0][:most]
        return [
            self._detection_row(row)
            if row < len(data.detections)
            else self._object_row(row - len(data.detections))
            for row in order.tolist()
        ]

    def image_table(self, most: int | None = None) -> list[Row]:
        """The images, the most expensive first: the sum of the costs of their errors.

        Args:
            most: number of rows; None for all that have errors.

        Returns:
            Rows with ``image``, ``file``, ``objects``, ``missed`` (all that were not found),
            ``false positives``, ``worst`` (the kind that costs most there) and ``cost``.
        """
        data, analysis = self.analysis.data, self.analysis
        size = len(data.image_ids)
        of_detections, of_objects = data.detections.images, data.objects.images
        names = [*KINDS, "FN"]
        kinds = np.concatenate((analysis.kinds, self._object_kinds()))
        images = np.concatenate((of_detections, of_objects))
        costs = np.concatenate((self.detections, self.objects))
        wrong = kinds >= 0
        by_kind = np.zeros((size, len(names)))
        np.add.at(by_kind, (images[wrong], kinds[wrong]), costs[wrong])
        counts = np.bincount(of_objects[~data.objects.ignored], minlength=size)
        missed = np.bincount(of_objects[analysis.not_found], minlength=size)
        false = np.bincount(of_detections[analysis.kinds >= 0], minlength=size)
        totals = by_kind.sum(axis=1)
        order = np.argsort(-totals, kind="stable")
        return [
            {
                "image": data.image_ids[i],
                "file": data.files[i],
                "objects": int(counts[i]),
                "missed": int(missed[i]),
                "false positives": int(false[i]),
                "worst": names[int(by_kind[i].argmax())],
                "cost": float(totals[i]),
            }
            for i in order[totals[order] > 0][:most].tolist()
        ]

    def _object_kinds(self) -> np.ndarray:
        """(N,) position in ``KINDS`` and "FN" behind them; -1 for objects that were found."""
        analysis = self.analysis
        blamed = np.where(analysis.not_found, len(KINDS), -1)
        return np.where(analysis.missed, KINDS.index("Miss"), blamed)

    def _detection_row(self, row: int) -> Row:
        data = self.analysis.data
        found = data.detections
        return {
            "image": data.image_ids[found.images[row]],
            "file": data.files[found.images[row]],
            "error": KINDS[self.analysis.kinds[row]],
            "class": data.class_names[found.classes[row]],
            "score": float(found.scores[row]),
            "box": found.boxes[row].tolist(),
            "cost": float(self.detections[row]),
        }

    def _object_row(self, row: int) -> Row:
        data = self.analysis.data
        objects = data.objects
        return {
            "image": data.image_ids[objects.images[row]],
            "file": data.files[objects.images[row]],
            "error": "Miss" if self.analysis.missed[row] else "FN",
            "class": data.class_names[objects.classes[row]],
            "score": None,
            "box": objects.boxes[row].tolist(),
            "cost": float(self.objects[row]),
        }


def error_costs(analysis: ErrorAnalysis) -> ErrorCosts:
    """Find what each error costs.

    With h true positives among the first n detections, a true positive adds h / n to the sum that
    AP is the mean of. Without one false positive before it, it would add h / (n - 1), and with one
    more object found before all others (h + 1) / (n + 1).
    """
    data = analysis.data
    positives = data.positives()
    costs = np.zeros(len(data.detections))
    gains = np.zeros(data.num_classes)
    judged = np.flatnonzero(~analysis.matches.ignored)
    classes, scores = data.detections.classes, data.detections.scores
    judged = judged[np.lexsort((-scores[judged], classes[judged]))]
    begin = np.searchsorted(classes[judged], np.arange(data.num_classes + 1))
    for number in np.flatnonzero(positives):
        rows = judged[begin[number] : begin[number + 1]]
        correct = analysis.matches.correct[rows]
        hits, ranks = np.cumsum(correct), np.arange(1, len(rows) + 1)
        # At rank 1 no false positive is before it.
        shorter = hits / np.maximum(ranks - 1, 1) - hits / ranks
        shorter = np.where(correct, shorter, 0.0)
        later = np.cumsum(shorter[::-1])[::-1]
        costs[rows] = np.where(correct, 0.0, later) / positives[number]
        longer = np.where(correct, (hits + 1) / (ranks + 1) - hits / ranks, 0.0)
        gains[number] = (1 + longer.sum()) / positives[number]
    share = 100 / max(int(np.count_nonzero(positives)), 1)
    missing = np.where(analysis.not_found, gains[data.objects.classes], 0.0)
    return ErrorCosts(analysis=analysis, detections=costs * share, objects=missing * share)
