"""What a report says about one detector, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resobj_d2.analysis.breakdown import breakdown_table
from resobj_d2.analysis.error_costs import ErrorCosts, error_costs
from resobj_d2.analysis.errors import ErrorAnalysis, analyze_errors
from resobj_d2.analysis.evaluation_set import EvaluationSet
from resobj_d2.analysis.tables import Row
from resobj_d2.analysis.thresholds import Curve, score_curves

from .subject import Subject

__all__ = ["Counts", "Judgement", "judge"]


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
        breakdown: rows of :func:`resobj_d2.analysis.breakdown.breakdown_table`.
        curves: by score, of all classes and of each.
        costs: of every single error.
    """

    subject: Subject
    errors: list[ErrorAnalysis]
    counts: list[Counts]
    breakdown: list[Row]
    curves: list[Curve]
    costs: ErrorCosts

    @property
    def data(self) -> EvaluationSet:
        """Ground truth and the detector's own detections."""
        return self.subject.data

    @property
    def last(self) -> ErrorAnalysis:
        """The errors of the detector's own detections."""
        return self.errors[-1]

    def average(self, name: str = "AP") -> float | None:
        """AP, AP50, AP75 or AR of everything in percent; None without objects."""
        return self.groups("all", name)["all"]

    def groups(self, by: str, name: str = "AP") -> dict[str, float | None]:
        """AP (or AP50, AP75, AR) in percent of the groups of a division, such as "class"."""
        return {str(row["group"]): row[name] for row in self.breakdown if row["by"] == by}


def judge(subject: Subject) -> Judgement:
    """Measure a subject at every step."""
    errors = [analyze_errors(data) for data in subject.steps]
    return Judgement(
        subject=subject,
        errors=errors,
        counts=[_counts(one) for one in errors],
        breakdown=breakdown_table(subject.data),
        curves=score_curves(subject.data),
        costs=error_costs(errors[-1]),
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
