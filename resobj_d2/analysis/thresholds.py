"""At which score to cut a detector off: precision, recall and F1 of every class by threshold.

::

    resobj-d2 analyze thresholds output/RUN
    resobj-d2 analyze thresholds output/RUN --precision 0.9 --plot curves.png

By default the threshold of each class is that of its highest F1. It ends with the override that
`resobj-d2 predict` takes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path

import numpy as np

from resobj_d2.command import CommandParser, run_command
from resobj_d2.plots.labels import plain_label
from resobj_d2.process import replacing

from .doubts import are_probabilities
from .evaluation_set import EvaluationSet
from .matching import Matches, match, overlapping_pairs
from .source import add_source_options, load_source
from .tables import Row, markdown, name_apart, write_json

__all__ = [
    "Curve",
    "Limit",
    "best_limit",
    "floor_score",
    "main",
    "score_curves",
    "shown_score",
    "threshold_override",
    "threshold_table",
    "why_no_override",
]

KEY = "PREDICT.SCORE_THRESH"
_DIGITS = 5  # of scores, rounded down
_ROUNDED = 10**6  # logits beyond it stay as they are
_LIMIT_DIGITS = 3  # of limits; more where another detection would pass


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What a class has at each of some scores as the threshold, the highest first.

    Attributes:
        name: of the class, or "all": every detection with its own class ("(all)" where a class
            has this name).
        objects: number of objects to find.
        scores: (n,) different thresholds; a detection of the same score counts.
        right, wrong: (n,) numbers of detections at or above each; those of crowd regions and
            difficult objects are neither.
    """

    name: str
    objects: int
    scores: np.ndarray
    right: np.ndarray
    wrong: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """(n,) from 0 to 1; NaN where there are no detections."""
        total = self.right + self.wrong
        return np.divide(self.right, total, out=np.full(len(total), np.nan), where=total > 0)

    @property
    def recall(self) -> np.ndarray:
        """(n,) from 0 to 1; 0 without objects."""
        return self.right / max(self.objects, 1)

    @property
    def f1(self) -> np.ndarray:
        """(n,) harmonic mean of both; 0 without detections and objects."""
        return 2 * self.right / np.maximum(self.right + self.wrong + self.objects, 1)

    def at(self, scores: np.ndarray) -> Curve:
        """The same curve at other scores.

        Args:
            scores: (m,) falling.
        """
        places = np.searchsorted(-self.scores, -scores, side="right")
        right, wrong = (np.r_[0, counts][places] for counts in (self.right, self.wrong))
        return replace(self, scores=scores, right=right, wrong=wrong)

    def best(self, *, precision: float | None = None, recall: float | None = None) -> int | None:
        """Position of the threshold that fits best; None without detections or objects.

        Args:
            precision: the most recall with at least this precision.
            recall: the most precision with at least this recall. Without both the highest F1.

        Where the wish cannot be met: the highest precision or recall there is. Of equal ones the
        highest threshold.
        """
        if not (self.right + self.wrong).any() or not self.objects:
            return None
        if precision is not None:
            return _most(self.recall, np.nan_to_num(self.precision), precision)
        if recall is not None:
            return _most(np.nan_to_num(self.precision), self.recall, recall)
        return int(np.argmax(self.f1))


def _most(wanted: np.ndarray, bounded: np.ndarray, bound: float) -> int:
    """Where ``wanted`` is highest with ``bounded`` at least at ``bound``, else ``bounded``."""
    allowed = bounded >= bound
    if not allowed.any():
        return int(np.argmax(bounded))
    return int(np.argmax(np.where(allowed, wanted, -1.0)))


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A lowest score, with what a detector has there.

    Attributes:
        score: that passes, and all above it.
        precision, recall, f1: from 0 to 1.
    """

    score: float
    precision: float
    recall: float
    f1: float


def best_limit(
    curve: Curve, *, precision: float | None = None, recall: float | None = None
) -> Limit | None:
    """The lowest score that fits best; None without detections or objects.

    It is rounded down to three digits after the point, or to as many more as keep out the
    detections that the best threshold keeps out.

    Args:
        curve: at the scores of the detections.
        precision, recall: as in :meth:`Curve.best`; without both the highest F1.
    """
    at = curve.best(precision=precision, recall=recall)
    if at is None:
        return None
    below = float(curve.scores[at + 1]) if at + 1 < len(curve.scores) else -math.inf
    score = _rounded_down(float(curve.scores[at]), below)
    there = curve.at(np.array([score]))
    figures = (float(values[0]) for values in (there.precision, there.recall, there.f1))
    return Limit(
        **dict(zip(("score", "precision", "recall", "f1"), (score, *figures), strict=True))
    )


def _rounded_down(score: float, below: float) -> float:
    """A score in as few digits as stay above another one."""
    if abs(score) > _ROUNDED:
        return score
    exact = Decimal(repr(score))
    for digits in range(_LIMIT_DIGITS, 18):
        value = float(exact.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_FLOOR))
        if value > below:
            return value
    return score


def shown_score(score: float | None, *, digits: int = 2) -> str:
    """A score as text, with all its digits.

    Args:
        score: None is "-".
        digits: after the point, at least.
    """
    return "-" if score is None else np.format_float_positional(score, min_digits=digits)


def score_curves(
    data: EvaluationSet, *, threshold: float = 0.5, matches: Matches | None = None
) -> list[Curve]:
    """Precision, recall and F1 by score: of all classes together, then of each.

    Args:
        data: ground truth and detections.
        threshold: of IoU, from which on a detection is right.
        matches: at this threshold, where they are known.
    """
    if matches is None:
        matches = match(data, overlapping_pairs(data, threshold), threshold)
    judged = np.flatnonzero(~matches.ignored)
    scores = data.detections.scores[judged]
    judged = judged[np.argsort(-scores, kind="stable")]
    scores, correct = data.detections.scores[judged], matches.correct[judged]
    classes, positives = data.detections.classes[judged], data.positives()
    whole = name_apart("all", data.class_names)
    curves = [_curve(whole, scores, correct, int(positives.sum()))]
    for number, name in enumerate(data.class_names):
        own = classes == number
        curves.append(_curve(name, scores[own], correct[own], int(positives[number])))
    return curves


def _curve(name: str, scores: np.ndarray, correct: np.ndarray, objects: int) -> Curve:
    last = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True][: len(scores)])
    right = np.cumsum(correct)[last]
    wrong = last + 1 - right
    return Curve(name=name, objects=objects, scores=scores[last], right=right, wrong=wrong)


def threshold_table(
    curves: Sequence[Curve], *, precision: float | None = None, recall: float | None = None
) -> list[Row]:
    """The threshold of each class, with what it has there.

    Args:
        curves: of :func:`score_curves`.
        precision, recall: as in :meth:`Curve.best`.

    Returns:
        Rows with ``class``, ``objects``, ``threshold``, ``precision``, ``recall``, ``F1`` in
        percent and ``reached``: whether the wish is met there. Thresholds are those of
        :func:`best_limit`. None where there are no objects or no detections.
    """
    rows: list[Row] = []
    for curve in curves:
        row: Row = {"class": curve.name, "objects": curve.objects}
        limit = best_limit(curve, precision=precision, recall=recall)
        if limit is None:
            rows.append({**row, **dict.fromkeys(_FIGURES)})
            continue
        reached = limit.precision >= (precision or 0) and limit.recall >= (recall or 0)
        figures = (limit.precision, limit.recall, limit.f1)
        values = [limit.score, *(100 * x for x in figures), reached]
        rows.append({**row, **dict(zip(_FIGURES, values, strict=True))})
    return rows


_FIGURES = ("threshold", "precision", "recall", "F1", "reached")


def floor_score(score: float) -> float:
    """A score in five digits, rounded down: what passes a limit passes it as it was."""
    # What is a round number already stays one.
    return math.floor(score * 10**_DIGITS + 1e-6) / 10**_DIGITS


def threshold_override(rows: Sequence[Row]) -> list[str] | None:
    """KEY and VALUE for `resobj-d2 predict`; classes without a threshold get that of "all".

    Args:
        rows: of :func:`threshold_table`.

    Returns:
        None where there is no threshold, or one outside of 0..1, which prediction refuses.
    """
    whole = rows[0]["threshold"]
    values = [whole if row["threshold"] is None else row["threshold"] for row in rows[1:]]
    if whole is None or not are_probabilities(np.array(values, dtype=float)):
        return None
    return [KEY, str(values)]


def why_no_override(rows: Sequence[Row]) -> str:
    """Why :func:`threshold_override` has none, as the end of a sentence.

    Args:
        rows: of :func:`threshold_table`.
    """
    if not rows[0]["objects"]:
        return "there are no objects to find"
    if rows[0]["threshold"] is None:
        return "there are no detections that count"
    return f"{KEY} takes scores from 0 to 1"


def curve_rows(curves: Sequence[Curve], most: int = 200) -> list[Row]:
    """Points for drawing: ``class``, ``threshold``, ``precision``, ``recall``, ``F1``.

    Args:
        curves: of :func:`score_curves`.
        most: points of a curve, evenly chosen among its detections.
    """
    rows: list[Row] = []
    for curve in curves:
        number = len(curve.scores)
        for i in np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(int)):
            rows.append(
                {
                    "class": curve.name,
                    "threshold": float(curve.scores[i]),
                    "precision": 100 * float(curve.precision[i]),
                    "recall": 100 * float(curve.recall[i]),
                    "F1": 100 * float(curve.f1[i]),
                }
            )
    return rows


def plot_curves(curves: Sequence[Curve], path: Path, *, most: int = 8) -> None:
    """Draw precision against recall, and F1 against the threshold, with the best one marked.

    Args:
        curves: of :func:`score_curves`.
        path: of the picture; its ending is the format.
        most: classes that are drawn, those with the most objects.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    classes = sorted(curves[1:], key=lambda curve: -curve.objects)[:most]
    for curve in [*classes, curves[0]]:
        style = {"color": "black", "linewidth": 2} if curve is curves[0] else {"linewidth": 1.2}
        left.plot(100 * curve.recall, 100 * curve.precision, label=plain_label(curve.name), **style)
        right.plot(curve.scores, 100 * curve.f1, **style)
        at = curve.best()
        if at is not None:
            color = right.lines[-1].get_color()
            left.plot(100 * curve.recall[at], 100 * curve.precision[at], "o", color=color, ms=4)
            right.plot(curve.scores[at], 100 * curve.f1[at], "o", color=color, ms=4)
    left.set(xlabel="recall (%)", ylabel="precision (%)", xlim=(0, 101), ylim=(0, 101))
    right.set(xlabel="score threshold", ylabel="F1 (%)", xlim=(0, 1), ylim=(0, 101))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize=8, loc="lower left")
    with replacing(path, binary=True) as file:
        figure.savefig(file, format=path.suffix[1:] or "png", dpi=150)


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; returns its exit code."""
    parser = CommandParser(
        prog="resobj-d2 analyze thresholds", description=__doc__.partition("\n")[0]
    )
    add_source_options(parser)
    parser.add_argument(
        "--iou", type=_fraction, default=0.5, metavar="IOU", help="of a match (default 0.5)"
    )
    wish = parser.add_mutually_exclusive_group()
    text = "instead of the highest F1: the threshold with the most {} at this {} or more"
    wish.add_argument(
        "--precision", type=_fraction, metavar="PART", help=text.format("recall", "precision")
    )
    wish.add_argument(
        "--recall", type=_fraction, metavar="PART", help=text.format("precision", "recall")
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves to .png or .svg")
    args = parser.parse_args(argv)
    if args.plot and args.plot.suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"--plot {args.plot}: the ending must be .png, .svg or .pdf")
    data = load_source(args.source, args)
    curves = score_curves(data, threshold=args.iou)
    rows = threshold_table(curves, precision=args.precision, recall=args.recall)
    override = threshold_override(rows)
    shown = [{**row, "threshold": shown_score(row["threshold"], digits=3)} for row in rows]
    if args.precision is None and args.recall is None:
        shown = [{k: v for k, v in row.items() if k != "reached"} for row in shown]
    print(f"{data.name}, at an IoU of {args.iou:g}; precision, recall and F1 in percent\n")
    print(markdown(shown, limit=30))
    if override is None:
        print(f"\nNo override for resobj-d2 predict: {why_no_override(rows)}")
    else:
        print(f'\nFor resobj-d2 predict ...:\n  {override[0]} "{override[1]}"')
    if args.plot:
        plot_curves(curves, args.plot)
    if args.json:
        tables = {"thresholds": rows, "overrides": override, "curves": curve_rows(curves)}
        write_json(args.json, tables)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, uses_operators=False))
