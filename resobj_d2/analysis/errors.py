"""What a detector loses its average precision by: TIDE's kinds of errors, and a confusion matrix.

::

    resobj-d2 analyze errors output/RUN
    resobj-d2 analyze errors results.json --data annotations/val.json

After Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020.
Every false positive has one kind of error, and every missed object one or none; dAP is what the
average precision would gain if errors of this kind alone did not happen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resobj_d2.command import run_command

from .evaluation_set import EvaluationSet
from .matching import Matches, Pairs, match, overlapping_pairs
from .precision import average_precision, mean_precision
from .source import add_source_options, load_source
from .tables import Row, markdown, write_json

__all__ = ["KINDS", "ErrorAnalysis", "analyze_errors", "confusion_table", "main"]

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
        precision: (K,) average precision of each class from 0 to 1; NaN without objects.
        fixed: by kind, also "FP" and "FN": the same after the errors of this kind were corrected.
    """

    data: EvaluationSet
    threshold: float
    background: float
    matches: Matches
    kinds: np.ndarray
    targets: np.ndarray
    missed: np.ndarray
    not_found: np.ndarray
    precision: np.ndarray
    fixed: dict[str, np.ndarray]

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
    missed = not_found & ~explained
    precision, fixed = _corrected(data, matches, kinds, targets, missed, not_found)
    return ErrorAnalysis(
        data=data,
        threshold=threshold,
        background=background,
        matches=matches,
        kinds=kinds,
        targets=targets,
        missed=missed,
        not_found=not_found,
        precision=precision,
        fixed=fixed,
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


def _corrected(
    data: EvaluationSet,
    matches: Matches,
    kinds: np.ndarray,
    targets: np.ndarray,
    missed: np.ndarray,
    not_found: np.ndarray,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Average precision of each class as it is, and by kind after these errors were corrected."""
    found, objects = data.detections, data.objects
    positives = data.positives()

    def precision(keep, correct, classes=found.classes, count=positives):
        return average_precision(classes[keep], found.scores[keep], correct[keep], count)

    judged, correct = ~matches.ignored, matches.correct
    fixed = {}
    for number, kind in enumerate(KINDS):
        if kind == "Miss":
            rest = positives - np.bincount(objects.classes[missed], minlength=data.num_classes)
            fixed[kind] = _without_missed(precision(judged, correct, count=rest), positives)
            continue
        wrong = kinds == number
        # The best detection of an object that is not found yet becomes right, all others vanish.
        saved = _best_of_each_object(found.scores, np.where(wrong, targets, -1), not_found)
        classes = np.where(saved, objects.classes[targets], found.classes) if saved.any() else None
        keep = judged & (~wrong | saved)
        classes = found.classes if classes is None else classes
        fixed[kind] = precision(keep, correct | saved, classes)
    fixed["FP"] = precision(correct, correct)
    rest = positives - np.bincount(objects.classes[not_found], minlength=data.num_classes)
    fixed["FN"] = _without_missed(precision(judged, correct, count=rest), positives)
    return precision(judged, correct), fixed


def _without_missed(precision: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Classes all of whose objects are missed stay at 0: nothing of them was found."""
    return np.where((positives > 0) & np.isnan(precision), 0.0, precision)


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
        The object of a false positive and the detection of a missed object are "background".
    """
    counts = confusion_matrix(data, confidence=confidence, threshold=threshold)
    names = [*data.class_names, "background"]
    cells = [
        {"object": names[i], "detection": names[j], "count": int(counts[i, j])}
        for i, j in np.argwhere(counts)
    ]
    return sorted(cells, key=lambda row: -row["count"])


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


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="resobj-d2 analyze errors", description=__doc__.partition("\n")[0]
    )
    add_source_options(parser)
    parser.add_argument("--iou", type=float, default=0.5, help="of a match (default 0.5)")
    parser.add_argument(
        "--background", type=float, default=0.1, help="IoU below which all is background (0.1)"
    )
    parser.add_argument(
        "--confidence", type=float, default=0.3, help="lowest score in the confusions (0.3)"
    )
    args = parser.parse_args(argv)
    data = load_source(args.source, args)
    analysis = analyze_errors(data, threshold=args.iou, background=args.background)
    confusions = confusion_table(data, confidence=args.confidence, threshold=args.iou)
    classes = analysis.class_table()
    base = mean_precision(analysis.precision)
    print(
        f"{data.name}: {len(data.objects)} objects and {len(data.detections)} detections on "
        f"{len(data.image_ids)} images; AP at IoU {args.iou:g}: "
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
