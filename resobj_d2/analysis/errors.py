"""What a detector loses its average precision by: TIDE's kinds of errors, and a confusion matrix.

::

    resobj-d2 analyze errors output/RUN
    resobj-d2 analyze errors results.json --data annotations/val.json

After Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020.
Every false positive has one kind of error, and every missed object one or none; dAP is what the
average precision would gain if errors of this kind alone did not happen.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from resobj_d2.command import CommandParser, run_command
from resobj_d2.process import counted

from .confusions import confusion_table
from .evaluation_set import EvaluationSet
from .matching import Matches, Pairs, match, overlapping_pairs
from .precision import average_precision, mean_precision
from .source import add_iou_option, add_source_options, load_source
from .tables import Row, markdown, write_json

__all__ = ["KINDS", "Correction", "ErrorAnalysis", "analyze_errors", "corrections", "main"]

KINDS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
"""TIDE's kinds of errors: wrong class; badly localised; both; duplicate; background; missed."""

_CORRECT, _IGNORED = -1, -2
_MEANINGS = {
    "Cls": "on an object of another class",
    "Loc": "on its object, but too loosely",
    "Both": "loosely on an object of another class",
    "Dupe": "on an object that a better one has found",
    "Bkg": "on nothing",
    "Miss": "objects that nothing is near",
    "FP": "all false positives together",
    "FN": "all missed objects together",
}


@dataclass(frozen=True, kw_only=True)
class ErrorAnalysis:
    """The errors of one detector at one threshold of IoU.

    Attributes:
        data: ground truth and detections.
        threshold, background: of IoU: from the first on a detection is right, below the second it
            is on background.
        matches: of detections and objects.
        kinds: (D,) position in :data:`KINDS` of the error that a detection is; negative for those
            that are right or not judged.
        targets: (D,) row of the object that an error of kind Cls or Loc is about, else -1.
        missed: (N,) bool: objects of kind Miss. Of the others that were not found, a Cls or Loc
            error is to blame.
        not_found: (N,) bool: all objects without a true positive.
    """

    data: EvaluationSet
    threshold: float
    background: float
    matches: Matches
    kinds: np.ndarray
    targets: np.ndarray
    missed: np.ndarray
    not_found: np.ndarray

    @functools.cached_property
    def _precisions(self) -> dict[str, np.ndarray]:
        return {kind: _precision(self.data, c) for kind, c in corrections(self)}

    @property
    def precision(self) -> np.ndarray:
        """(K,) average precision of each class from 0 to 1; NaN without objects."""
        return self._precisions[""]

    @property
    def fixed(self) -> dict[str, np.ndarray]:
        """By kind, also "FP" and "FN": the same after the errors of this kind were corrected."""
        return {kind: values for kind, values in self._precisions.items() if kind}

    def table(self) -> list[Row]:
        """A row for each kind: ``error``, ``count``, ``dAP`` in percent, ``meaning``."""
        counts = self._counts()
        base = mean_precision(self.precision)
        rows: list[Row] = []
        for kind, after in self.fixed.items():
            value = mean_precision(after)
            gain = None if base is None or value is None else value - base
            rows.append(
                {
                    "error": kind,
                    "count": int(counts[kind].sum()),
                    "dAP": gain,
                    "meaning": _MEANINGS[kind],
                }
            )
        return rows

    def class_table(self) -> list[Row]:
        """A row for each class: ``class``, ``objects``, ``detections``, ``AP``, and dAP by kind.

        A gain from a corrected class counts for the class that the object has.
        """
        judged = np.bincount(
            self.data.detections.classes[~self.matches.ignored], minlength=self.data.num_classes
        )
        rows: list[Row] = []
        for number, name in enumerate(self.data.class_names):
            exists = not np.isnan(self.precision[number])
            row: Row = {
                "class": name,
                "objects": int(self.data.positives()[number]),
                "detections": int(judged[number]),
                "AP": float(100 * self.precision[number]) if exists else None,
            }
            for kind, after in self.fixed.items():
                gain = 100 * float(after[number] - self.precision[number])
                row[kind] = gain if exists else None
            rows.append(row)
        return rows

    def count_table(self) -> list[Row]:
        """A row for each class: ``class``, and the number of errors by kind.

        A detection counts for the class that it claims.
        """
        counts = self._counts()
        return [
            {"class": name, **{kind: int(values[number]) for kind, values in counts.items()}}
            for number, name in enumerate(self.data.class_names)
        ]

    def _counts(self) -> dict[str, np.ndarray]:
        size = self.data.num_classes
        claimed, actual = self.data.detections.classes, self.data.objects.classes
        counts = {
            kind: np.bincount(claimed[self.kinds == number], minlength=size)
            for number, kind in enumerate(KINDS)
        }
        counts["Miss"] = np.bincount(actual[self.missed], minlength=size)
        counts["FP"] = np.bincount(claimed[self.kinds >= 0], minlength=size)
        counts["FN"] = np.bincount(actual[self.not_found], minlength=size)
        return counts


def analyze_errors(
    data: EvaluationSet, *, threshold: float = 0.5, background: float = 0.1
) -> ErrorAnalysis:
    """Find the kind of every error, and what each kind costs.

    Args:
        data: ground truth and detections.
        threshold: of IoU, from which on a detection is right.
        background: below this IoU with every object a detection is on background.

    Raises:
        ValueError: not 0 < background < threshold <= 1.
    """
    if not 0 < background < threshold <= 1:
        raise ValueError(
            "the IoU for background must be above 0 and below that for a match, which is at most "
            f"1; got {background:g} and {threshold:g}"
        )
    pairs = overlapping_pairs(data, background)
    matches = match(data, pairs, threshold)
    kinds, targets = _kinds(data, pairs, matches, threshold)
    not_found = ~data.objects.ignored
    not_found[matches.objects[matches.correct]] = False
    explained = np.zeros(len(data.objects), dtype=bool)
    explained[targets[targets >= 0]] = True
    return ErrorAnalysis(
        data=data,
        threshold=threshold,
        background=background,
        matches=matches,
        kinds=kinds,
        targets=targets,
        missed=not_found & ~explained,
        not_found=not_found,
    )


def _kinds(
    data: EvaluationSet, pairs: Pairs, matches: Matches, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of each detection the kind of error, and the object that it is about."""
    pairs = pairs.take(~data.objects.ignored[pairs.objects])
    same = data.detections.classes[pairs.detections] == data.objects.classes[pairs.objects]
    own_iou, own = _best_objects(len(data.detections), pairs.take(same))
    other_iou, other = _best_objects(len(data.detections), pairs.take(~same))
    conditions = [
        matches.ignored,
        matches.correct,
        (own >= 0) & (own_iou < threshold),
        other_iou >= threshold,
        own_iou >= threshold,
        (own < 0) & (other < 0),
    ]
    numbers = [_IGNORED, _CORRECT, *(KINDS.index(kind) for kind in ("Loc", "Cls", "Dupe", "Bkg"))]
    kinds = np.select(conditions, numbers, default=KINDS.index("Both"))
    targets = np.full(len(kinds), -1)
    targets = np.where(kinds == KINDS.index("Loc"), own, targets)
    return kinds, np.where(kinds == KINDS.index("Cls"), other, targets)


def _best_objects(number: int, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the highest IoU of its pairs and the object; 0 and -1 without pairs."""
    order = np.lexsort((pairs.objects, -pairs.ious, pairs.detections))
    pairs = pairs.take(order)
    first = np.r_[True, pairs.detections[1:] != pairs.detections[:-1]][: len(pairs)]
    ious, objects = np.zeros(number), np.full(number, -1)
    ious[pairs.detections[first]] = pairs.ious[first]
    objects[pairs.detections[first]] = pairs.objects[first]
    return ious, objects


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What is evaluated after the errors of one kind were corrected.

    Attributes:
        kept: (n,) rows of the detections that are left and judged.
        classes: (D,) their classes.
        correct: (D,) bool, whether they are true positives.
        to_find: (N,) bool, the objects that count.
    """

    kept: np.ndarray
    classes: np.ndarray
    correct: np.ndarray
    to_find: np.ndarray


def corrections(analysis: ErrorAnalysis) -> Iterator[tuple[str, Correction]]:
    """By kind, first "" for no correction, and "FP" and "FN" at the end."""
    found, objects = analysis.data.detections, analysis.data.objects
    judged, correct = ~analysis.matches.ignored, analysis.matches.correct
    to_find = ~objects.ignored

    def changed(keep=judged, classes=found.classes, correct=correct, to_find=to_find):
        kept = np.flatnonzero(keep)
        return Correction(kept=kept, classes=classes, correct=correct, to_find=to_find)

    yield "", changed()
    for number, kind in enumerate(KINDS[:-1]):
        wrong = analysis.kinds == number
        # The best detection of an object that is not found yet becomes right, all others vanish.
        targets = np.where(wrong, analysis.targets, -1)
        saved = _best_of_each_object(found.scores, targets, analysis.not_found)
        classes = found.classes.copy()
        classes[saved] = objects.classes[targets[saved]]
        yield kind, changed(judged & (~wrong | saved), classes, correct | saved)
    yield "Miss", changed(to_find=to_find & ~analysis.missed)
    yield "FP", changed(correct)
    yield "FN", changed(to_find=to_find & ~analysis.not_found)


def _precision(data: EvaluationSet, correction: Correction) -> np.ndarray:
    kept = correction.kept
    positives = np.bincount(data.objects.classes[correction.to_find], minlength=data.num_classes)
    precision = average_precision(
        correction.classes[kept],
        data.detections.scores[kept],
        correction.correct[kept],
        positives,
    )
    return _without_missed(precision, data.positives())


def _without_missed(precision: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """A class of whose objects none is left has lost nothing."""
    return np.where((positives > 0) & np.isnan(precision), 1.0, precision)


def _best_of_each_object(
    scores: np.ndarray, targets: np.ndarray, not_found: np.ndarray
) -> np.ndarray:
    """(D,) bool: the best-scored detection of each target that is not found."""
    best = np.zeros(len(scores), dtype=bool)
    rows = np.flatnonzero(targets >= 0)
    rows = rows[not_found[targets[rows]]]
    order = rows[np.lexsort((-scores[rows], targets[rows]))]
    best[order[np.r_[True, targets[order][1:] != targets[order][:-1]][: len(order)]]] = True
    return best


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; returns its exit code."""
    parser = CommandParser(prog="resobj-d2 analyze errors", description=__doc__.partition("\n")[0])
    add_source_options(parser)
    add_iou_option(parser)
    parser.add_argument(
        "--background",
        type=float,
        default=0.1,
        metavar="IOU",
        help="IoU below which all is background (0.1)",
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.3,
        metavar="SCORE",
        help="lowest score in the confusions (0.3)",
    )
    args = parser.parse_args(argv)
    data = load_source(args.source, args)
    analysis = analyze_errors(data, threshold=args.iou, background=args.background)
    confusions = confusion_table(data, confidence=args.confidence, threshold=args.iou)
    classes = analysis.class_table()
    base = mean_precision(analysis.precision)
    print(
        f"{data.name}: {counted(len(data.objects), 'object')} and "
        f"{counted(len(data.detections), 'detection')} on "
        f"{counted(len(data.image_ids), 'image')}; AP at IoU {args.iou:g}: "
        + ("-" if base is None else f"{base:.1f}")
    )
    print(f"\n{markdown(analysis.table(), digits=2)}")
    classes_shown = sorted(classes, key=lambda row: (row["AP"] is None, row["AP"]))
    print(f"\nBy class, worst first; dAP by kind\n\n{markdown(classes_shown, limit=20)}")
    mixed = [row for row in confusions if row["object"] != row["detection"]]
    title = f"Confusions at a score of at least {args.confidence:g}"
    print(f"\n{title}\n\n{markdown(mixed, limit=20) if mixed else 'none'}")
    if args.json:
        tables = {
            "AP": base,
            "errors": analysis.table(),
            "classes": classes,
            "counts": analysis.count_table(),
            "confusions": confusions,
        }
        write_json(args.json, tables)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, uses_operators=False))
