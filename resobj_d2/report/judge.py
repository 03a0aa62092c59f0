"""What a report says about one detector, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resobj_d2.analysis.errors import ErrorAnalysis, analyze_errors
from resobj_d2.analysis.evaluation_set import EvaluationSet
from resobj_d2.analysis.precision import IOU_THRESHOLDS, mean_precision, precision_by_threshold

from .subject import Subject

__all__ = ["Counts", "Judgement", "judge"]

# Of COCO: areas in square pixels below which an object is small, and not large.
_AREAS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Right and wrong detections of a whole data set over the lowest score that counts.

    Attributes:
        thresholds: (101,) scores 0, .01, ... 1.
        right, wrong: (101,) detections at or above each; those of crowd regions and difficult
            objects are neither.
        objects: to be found.
    """

    thresholds: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    objects: int

    @property
    def precision(self) -> np.ndarray:
        """(101,); NaN where there are no detections."""
        total = self.right + self.wrong
        return np.divide(self.right, total, out=np.full(len(total), np.nan), where=total > 0)

    @property
    def recall(self) -> np.ndarray:
        """(101,); NaN without objects."""
        return self.right / self.objects if self.objects else np.full(len(self.right), np.nan)

    @property
    def f1(self) -> np.ndarray:
        """(101,) harmonic mean of both; 0 without detections and objects."""
        total = self.right + self.wrong + self.objects
        return np.divide(2 * self.right, total, out=np.zeros(len(total)), where=total > 0)

    @property
    def best(self) -> int:
        """Position of the score with the highest F1; the highest such score."""
        f1 = self.f1
        return int(len(f1) - 1 - f1[::-1].argmax()) if len(f1) and f1.max() > 0 else 30

    @property
    def best_score(self) -> float:
        """That score."""
        return float(self.thresholds[self.best])


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The measurements of one subject.

    Attributes:
        subject: what was measured.
        errors: at IoU 0.5, of each step.
        counts: the same.
        precision: (10, K) average precision by IoU threshold and class, NaN without objects.
        recall_by_size: part of the small, medium and large objects that is found at IoU 0.5; None
            without such objects.
    """

    subject: Subject
    errors: list[ErrorAnalysis]
    counts: list[Counts]
    precision: np.ndarray
    recall_by_size: dict[str, float | None]

    @property
    def data(self) -> EvaluationSet:
        """Ground truth and the detector's own detections."""
        return self.subject.data

    @property
    def last(self) -> ErrorAnalysis:
        """The errors of the detector's own detections."""
        return self.errors[-1]

    def average(self, threshold: float | None = None) -> float | None:
        """AP in percent, at one IoU threshold or over all; None without objects."""
        if threshold is None:
            return mean_precision(self.precision)
        return mean_precision(self.precision[int(np.argmin(np.abs(_THRESHOLDS - threshold)))])

    def class_averages(self) -> dict[str, float | None]:
        """AP in percent by name of the class."""
        columns = self.precision.T
        return {
            name: mean_precision(column)
            for name, column in zip(self.data.class_names, columns, strict=True)
        }


_THRESHOLDS = np.array(IOU_THRESHOLDS)


def judge(subject: Subject) -> Judgement:
    """Measure a subject at every step."""
    errors = [analyze_errors(data) for data in subject.steps]
    return Judgement(
        subject=subject,
        errors=errors,
        counts=[_counts(one) for one in errors],
        precision=precision_by_threshold(subject.data),
        recall_by_size=_recall_by_size(errors[-1]),
    )


def _counts(errors: ErrorAnalysis) -> Counts:
    scores, matches = errors.data.detections.scores, errors.matches
    # As a user compares them: 0.30 on the slider keeps a detection of 0.30.
    thresholds = np.round(np.linspace(0, 1, 101), 2)

    def above(rows: np.ndarray) -> np.ndarray:
        ordered = np.sort(scores[rows])
        return len(ordered) - np.searchsorted(ordered, thresholds, side="left")

    return Counts(
        thresholds=thresholds,
        right=above(matches.correct),
        wrong=above(matches.wrong),
        objects=int((~errors.data.objects.ignored).sum()),
    )


def _recall_by_size(errors: ErrorAnalysis) -> dict[str, float | None]:
    objects = errors.data.objects
    recall: dict[str, float | None] = {}
    for name, (low, high) in _AREAS.items():
        own = ~objects.ignored & (objects.areas >= low) & (objects.areas < high)
        recall[name] = float(100 * (~errors.not_found[own]).mean()) if own.any() else None
    return recall
