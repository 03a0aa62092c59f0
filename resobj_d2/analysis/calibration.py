"""Whether scores are probabilities: how often detections of each score are right.

::

    resobj-d2 analyze calibration output/RUN

After Küppers et al., "Multivariate Confidence Calibration for Object Detection", CVPR Workshops
2020, with the score alone: the expected calibration error is the mean distance between score and
precision over bins of the score, weighted by their detections.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from resobj_d2.command import CommandParser, run_command

from .binning import bin_of
from .evaluation_set import EvaluationSet
from .matching import match, overlapping_pairs
from .source import add_iou_option, add_source_options, load_source
from .tables import Row, markdown, name_apart, write_json

__all__ = ["calibration_table", "class_calibration_table", "main"]


def calibration_table(
    data: EvaluationSet, *, threshold: float = 0.5, bins: int = 10, lowest: float = 0.0
) -> list[Row]:
    """The reliability diagram as a table.

    Args:
        data: ground truth and detections.
        threshold: of IoU, from which on a detection is right.
        bins: equally wide, from 0 to 1.
        lowest: score from which on detections count.

    Returns:
        Rows with ``from``, ``to`` (of scores; a score at the border belongs to the higher bin),
        ``detections``, ``score`` (their mean, from 0 to 1) and ``precision`` in percent, None
        without detections.
    """
    scores, correct, _ = _judged(data, threshold, lowest)
    places = bin_of(scores, bins)
    counts = np.bincount(places, minlength=bins)
    means = _means(places, scores, counts)
    precisions = _means(places, 100 * correct, counts)
    return [
        {
            "from": i / bins,
            "to": (i + 1) / bins,
            "detections": int(counts[i]),
            "score": means[i],
            "precision": precisions[i],
        }
        for i in range(bins)
    ]


def class_calibration_table(
    data: EvaluationSet, *, threshold: float = 0.5, bins: int = 10, lowest: float = 0.0
) -> list[Row]:
    """Expected calibration error of all detections, then of each class.

    Returns:
        Rows with ``class``, ``detections``, ``score`` from 0 to 1 and ``precision`` in percent
        (means over them), and ``ECE`` in percent; None without detections. A score above the
        precision is overconfident.
        The first class is "all", or "(all)" where a class has this name.
    """
    scores, correct, classes = _judged(data, threshold, lowest)
    rows = [_error_row(name_apart("all", data.class_names), scores, correct, bins)]
    for number, name in enumerate(data.class_names):
        own = classes == number
        rows.append(_error_row(name, scores[own], correct[own], bins))
    return rows


def _error_row(name: str, scores: np.ndarray, correct: np.ndarray, bins: int) -> Row:
    row: Row = {"class": name, "detections": len(scores)}
    if not len(scores):
        return {**row, "score": None, "precision": None, "ECE": None}
    places = bin_of(scores, bins)
    gaps = np.bincount(places, scores - correct, minlength=bins)
    return {
        **row,
        "score": float(scores.mean()),
        "precision": 100 * float(correct.mean()),
        "ECE": 100 * float(np.abs(gaps).sum() / len(scores)),
    }


def _judged(
    data: EvaluationSet, threshold: float, lowest: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, whether they are right, and classes of the detections that count."""
    matches = match(data, overlapping_pairs(data, threshold), threshold)
    chosen = ~matches.ignored & (data.detections.scores >= lowest)
    scores, classes = data.detections.scores[chosen], data.detections.classes[chosen]
    if len(scores) and not 0 <= scores.min() <= scores.max() <= 1:
        raise ValueError(
            f"'{data.name}' has scores from {scores.min():g} to {scores.max():g}: only those "
            "between 0 and 1 can be probabilities"
        )
    return scores, matches.correct[chosen].astype(float), classes


def _means(places: np.ndarray, values: np.ndarray, counts: np.ndarray) -> list[float | None]:
    sums = np.bincount(places, values, minlength=len(counts))
    return [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; returns its exit code."""
    parser = CommandParser(
        prog="resobj-d2 analyze calibration", description=__doc__.partition("\n")[0]
    )
    add_source_options(parser)
    add_iou_option(parser)
    parser.add_argument(
        "--bins", type=int, default=10, metavar="N", help="of the score (default 10)"
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.0,
        metavar="SCORE",
        help="lowest score that counts (default: all)",
    )
    args = parser.parse_args(argv)
    if args.bins < 1 or not 0 < args.iou <= 1:
        parser.error("--bins must be at least 1, and --iou above 0 and at most 1")
    data = load_source(args.source, args)
    options = {"threshold": args.iou, "bins": args.bins, "lowest": args.confidence}
    reliability = calibration_table(data, **options)
    classes = class_calibration_table(data, **options)
    print(f"{data.name}, at an IoU of {args.iou:g}; precision and ECE in percent\n")
    print(markdown(reliability, digits=2))
    worst = sorted(classes[1:], key=lambda row: -(row["ECE"] or 0))
    print(f"\nClasses, worst first\n\n{markdown([classes[0], *worst], digits=3, limit=21)}")
    if args.json:
        write_json(args.json, {"reliability": reliability, "classes": classes})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, uses_operators=False))
