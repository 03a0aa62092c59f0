"""Whether boxes with high scores are boxes that fit: score against IoU, before and after NMS.

::

    resobj-d2 analyze dump --config-file output/RUN/config.yaml --weights output/RUN/model_final.pth
    resobj-d2 analyze misalignment output/RUN/dump --plot misalignment.png

The measurements of two papers: how many boxes have a high score, a high IoU, or both (RetinaNet-
Conf, Table 1, Figures 1 and 2); the score over the IoU, and the IoU of a box after regression over
that of its anchor (consistent optimisation, Figures 3 and 5).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resobj_d2.command import CommandParser, run_command

from .binning import bin_of
from .dump_file import Dump, load_dump
from .evaluation_set import Detections, EvaluationSet, Objects, with_sizes
from .matching import overlapping_pairs
from .source import tell_doubts
from .tables import Row, markdown, write_json

__all__ = [
    "ScoredBoxes",
    "agreement_table",
    "correlation_table",
    "main",
    "regression_table",
    "score_table",
    "scored_boxes",
]

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Of scores and IoUs in the table of agreement."""

POSITIVE = 0.5
"""IoU from which on a box is on an object, and an anchor positive."""


@dataclass(frozen=True, kw_only=True)
class ScoredBoxes:
    """Boxes of one source with what is compared.

    Attributes:
        name: "detections", or the source of candidates before NMS and "before NMS".
        scores: (n,).
        ious: (n,) best IoU with an object of the box's class, of any class for proposals.
            Difficult objects count, crowd regions do not.
        factors: (n,) each, the probabilities that the score is made of, by name; NaN where a box
            has none.
    """

    name: str
    scores: np.ndarray
    ious: np.ndarray
    factors: dict[str, np.ndarray]


def scored_boxes(dump: Dump) -> list[ScoredBoxes]:
    """The candidates of each source, where the dump has candidates, and the detections."""
    result = []
    candidates = dump.candidates
    if candidates is not None:
        ious = _best_ious(dump, candidates.image_index, candidates.boxes, candidates.classes)
        for number, source in enumerate(dump.sources):
            rows = np.flatnonzero(candidates.sources == number)
            factors = {name: column[rows] for name, column in candidates.factors.items()}
            result.append(
                ScoredBoxes(
                    name=f"{source} before NMS",
                    scores=candidates.scores[rows],
                    ious=ious[rows],
                    factors=factors,
                )
            )
    found = dump.detections
    ious = _best_ious(dump, found.image_index, found.boxes, found.classes)
    result.append(
        ScoredBoxes(name="detections", scores=found.scores, ious=ious, factors=found.factors)
    )
    return result


def _best_ious(
    dump: Dump, images: np.ndarray, boxes: np.ndarray, classes: np.ndarray | None
) -> np.ndarray:
    """(n,) best IoU with an object, difficult ones too as in ``prior_iou``; crowd regions are none.

    Args:
        classes: of the boxes; -1, or None for all of them, for an object of any class.
    """
    real = np.flatnonzero(~dump.objects.crowd)
    objects = dump.objects
    data = EvaluationSet(
        name="",
        class_names=dump.class_names,
        image_ids=list(dump.images.ids),
        files=dump.images.files,
        sizes=np.zeros((len(dump.images), 2), np.int64),
        objects=Objects(
            images=objects.image_index[real],
            classes=objects.classes[real],
            boxes=with_sizes(objects.boxes[real]),
            areas=objects.areas[real],
            crowd=objects.crowd[real],
            difficult=objects.crowd[real],
        ),
        detections=Detections(
            images=images,
            classes=np.full(len(images), -1) if classes is None else classes,
            boxes=with_sizes(boxes),
            scores=np.zeros(len(images)),
        ),
    )
    pairs = overlapping_pairs(data, 1e-9)
    own = data.detections.classes[pairs.detections]
    fits = (own < 0) | (own == data.objects.classes[pairs.objects])
    best = np.zeros(len(images))
    np.maximum.at(best, pairs.detections[fits], pairs.ious[fits])
    return best


def agreement_table(boxes: Sequence[ScoredBoxes]) -> list[Row]:
    """How many boxes have a high score, a high IoU, and both.

    Returns:
        Rows with ``boxes`` (their name), ``number``, ``on objects`` (an IoU of at least 0.5),
        ``threshold``, and of those on objects ``score above``, ``IoU above``, ``both``, and
        ``agree``: both, in percent of those that are above in one or the other; None for none.
    """
    rows: list[Row] = []
    for one in boxes:
        on_objects = one.ious >= POSITIVE
        for threshold in THRESHOLDS:
            high_score = on_objects & (one.scores > threshold)
            high_iou = on_objects & (one.ious > threshold)
            both, either = high_score & high_iou, high_score | high_iou
            rows.append(
                {
                    "boxes": one.name,
                    "number": len(one.scores),
                    "on objects": int(on_objects.sum()),
                    "threshold": threshold,
                    "score above": int(high_score.sum()),
                    "IoU above": int(high_iou.sum()),
                    "both": int(both.sum()),
                    "agree": 100 * float(both.sum() / either.sum()) if either.any() else None,
                }
            )
    return rows


def correlation_table(boxes: Sequence[ScoredBoxes]) -> list[Row]:
    """How well scores and their factors rank boxes on objects by their IoU.

    Returns:
        Rows with ``boxes``, ``value`` ("score" or a factor), ``number``, ``spearman`` (the
        correlation of the ranks) and ``pearson``; None for less than two different values.
    """
    rows: list[Row] = []
    for one in boxes:
        for name, values in {"score": one.scores, **one.factors}.items():
            used = (one.ious >= POSITIVE) & np.isfinite(values)
            if name != "score" and not np.isfinite(values).any():
                continue
            x, y = values[used].astype(float), one.ious[used]
            rows.append(
                {
                    "boxes": one.name,
                    "value": name,
                    "number": int(used.sum()),
                    "spearman": _correlation(_ranks(x), _ranks(y)),
                    "pearson": _correlation(x, y),
                }
            )
    return rows


def _ranks(values: np.ndarray) -> np.ndarray:
    """Places in ascending order; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def _correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        return None
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def score_table(boxes: Sequence[ScoredBoxes], *, bins: int = 10) -> list[Row]:
    """The score of boxes over their IoU.

    Args:
        boxes: of :func:`scored_boxes`.
        bins: equally wide, of the IoU from 0 to 1.

    Returns:
        Rows with ``boxes``, ``from``, ``to`` (of IoU), ``number``, ``share`` (in percent of all
        boxes), ``score`` (mean), ``deviation`` (standard) and ``high``: the percentage with a score
        above 0.5. The last three are None without boxes.
    """
    rows: list[Row] = []
    for one in boxes:
        for row in _binned(one.ious, one.scores, bins):
            high = row.pop("chosen", None)
            scores = one.scores[high]
            mean = row.pop("mean")
            share = 100 * row["number"] / max(len(one.scores), 1)
            part = 100 * float((scores > 0.5).mean()) if len(scores) else None
            deviation = row.pop("deviation")
            columns = {"share": share, "score": mean, "deviation": deviation, "high": part}
            rows.append({"boxes": one.name, **row, **columns})
    return rows


def regression_table(dump: Dump, *, bins: int = 10) -> list[Row]:
    """The IoU of a candidate's box after each stage of regression over that of its anchor.

    IoUs are the best with an object of any class, difficult ones included.

    Args:
        dump: with candidates.
        bins: equally wide, of the IoU from 0 to 1.

    Returns:
        Rows with ``source``, ``stage`` (from 1), ``from``, ``to`` (of the anchor's or proposal's
        IoU), ``number``, ``IoU`` (mean after the stage), ``deviation`` and ``better``: the
        percentage whose IoU the stage has raised above that of the anchor. Empty without
        candidates.
    """
    candidates = dump.candidates
    if candidates is None:
        return []
    rows: list[Row] = []
    before = candidates.prior_ious.astype(float)
    after = [_best_ious(dump, candidates.image_index, x, None) for x in candidates.stages]
    for number, source in enumerate(dump.sources):
        own = candidates.sources == number
        for stage, ious in enumerate(after):
            chosen = own & np.isfinite(candidates.stages[stage][:, 0])
            if not chosen.any():
                continue
            for row in _binned(before[chosen], ious[chosen], bins):
                inside = row.pop("chosen")
                raised = ious[chosen][inside] > before[chosen][inside]
                mean, deviation = row.pop("mean"), row.pop("deviation")
                better = 100 * float(raised.mean()) if len(raised) else None
                figures = {"IoU": mean, "deviation": deviation, "better": better}
                rows.append({"source": source, "stage": stage + 1, **row, **figures})
    return rows


def _binned(x: np.ndarray, y: np.ndarray, bins: int) -> list[dict]:
    """Mean and deviation of ``y`` in equal bins of ``x`` from 0 to 1, and which are inside."""
    places = bin_of(x, bins)
    rows = []
    for i in range(bins):
        chosen = np.flatnonzero(places == i)
        values = y[chosen].astype(float)
        rows.append(
            {
                "from": i / bins,
                "to": (i + 1) / bins,
                "number": len(values),
                "mean": float(values.mean()) if len(values) else None,
                "deviation": float(values.std()) if len(values) else None,
                "chosen": chosen,
            }
        )
    return rows


def scatter_rows(boxes: Sequence[ScoredBoxes], *, most: int = 1000, seed: int = 0) -> list[Row]:
    """Points of boxes on objects, drawn at random: ``boxes``, ``IoU`` and ``score``."""
    random = np.random.default_rng(seed)
    rows: list[Row] = []
    for one in boxes:
        known = np.flatnonzero(one.ious >= POSITIVE)
        chosen = np.sort(random.choice(known, min(most, len(known)), replace=False))
        for i in chosen.tolist():
            rows.append(
                {"boxes": one.name, "IoU": float(one.ious[i]), "score": float(one.scores[i])}
            )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; returns its exit code."""
    parser = CommandParser(
        prog="resobj-d2 analyze misalignment", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("dump", metavar="DUMP", help="what `analyze dump` wrote, or its run")
    parser.add_argument("--bins", type=int, default=10, metavar="N", help="of IoU (default 10)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it to .png, .svg or .pdf")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all tables to it")
    args = parser.parse_args(argv)
    if args.bins < 1:
        parser.error(f"--bins must be at least 1, got {args.bins}")
    if args.plot and args.plot.suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"--plot {args.plot}: the ending must be .png, .svg or .pdf")
    dump = load_dump(args.dump)
    tell_doubts(EvaluationSet.of_dump(dump))
    boxes = scored_boxes(dump)
    tables = {
        "agreement": agreement_table(boxes),
        "correlations": correlation_table(boxes),
        "scores": score_table(boxes, bins=args.bins),
        "regression": regression_table(dump, bins=args.bins),
    }
    print(f"{dump.path}: score and IoU\n\n{markdown(tables['agreement'])}")
    print(f"\nCorrelation with the IoU\n\n{markdown(tables['correlations'], digits=3)}")
    print(f"\nScores by IoU\n\n{markdown(tables['scores'], digits=2)}")
    if tables["regression"]:
        known = [row for row in tables["regression"] if row["number"]]
        print(f"\nIoU after regression, by that before\n\n{markdown(known, digits=2)}")
    else:
        print("\nThis dump has no candidates: there are just the detections")
    if args.plot:
        from .misalignment_plot import plot_misalignment

        plot_misalignment(scatter_rows(boxes), tables, args.plot)
    if args.json:
        write_json(args.json, {**tables, "scatter": scatter_rows(boxes)})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, uses_operators=False))
