"""What a report says about one detector, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resobj_d2.analysis.breakdown import breakdown_table
from resobj_d2.analysis.error_costs import ErrorCosts, error_costs
from resobj_d2.analysis.errors import ErrorAnalysis, analyze_errors
from resobj_d2.analysis.evaluation_set import EvaluationSet
from resobj_d2.analysis.tables import Row
from resobj_d2.analysis.thresholds import Curve, Limit, best_limit, score_curves

from .subject import Subject

__all__ = ["SLIDER", "Judgement", "judge"]


SLIDER = np.round(np.linspace(1, 0, 101), 2)
"""The lowest scores that the page can show, falling; a detection of exactly that score counts."""

_USUAL = 0.3


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The measurements of one subject.

    Attributes:
        subject: what was measured.
        errors: at IoU 0.5, of each step.
        wholes: precision and recall by score of all classes together, of each step.
        limits: of each step the lowest score with the highest F1; None where nothing is right.
        counts: ``wholes`` at the scores of :data:`SLIDER`.
        breakdown: rows of :func:`resobj_d2.analysis.breakdown.breakdown_table`.
        curves: by score, of all classes and of each.
        costs: of every single error.
    """

    subject: Subject
    errors: list[ErrorAnalysis]
    wholes: list[Curve]
    limits: list[Limit | None]
    counts: list[Curve]
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

    @property
    def limit(self) -> Limit | None:
        """The lowest score at which its own detections have the highest F1."""
        return self.limits[-1]

    @property
    def best_score(self) -> float:
        """The score of :attr:`limit`; .30 where there is none."""
        return _USUAL if self.limit is None else self.limit.score

    @property
    def slider_start(self) -> float:
        """The highest place of the slider that cuts nothing off that the limit keeps."""
        reached = SLIDER[self.best_score >= SLIDER]
        return float(reached[0]) if len(reached) else float(SLIDER[-1])

    def average(self, name: str = "AP") -> float | None:
        """AP, AP50, AP75 or AR of everything in percent; None without objects."""
        return self.groups("all", name)["all"]

    def groups(self, by: str, name: str = "AP") -> dict[str, float | None]:
        """AP (or AP50, AP75, AR) in percent, or "objects", of a division's groups, as "class"."""
        return {str(row["group"]): row[name] for row in self.breakdown if row["by"] == by}


def judge(subject: Subject) -> Judgement:
    """Measure a subject at every step."""
    errors = [analyze_errors(data) for data in subject.steps]
    curves = [score_curves(one.data, matches=one.matches) for one in errors]
    wholes = [whole for whole, *_ in curves]
    return Judgement(
        subject=subject,
        errors=errors,
        wholes=wholes,
        limits=[best_limit(whole) if whole.right.any() else None for whole in wholes],
        counts=[whole.at(SLIDER) for whole in wholes],
        breakdown=breakdown_table(subject.data),
        curves=curves[-1],
        costs=error_costs(errors[-1]),
    )
