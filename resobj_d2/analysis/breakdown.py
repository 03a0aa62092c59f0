"""Where a detector is good and where it is not: AP by class, size, shape, crowding and IoU.

::

    resobj-d2 analyze breakdown output/RUN

Objects of other groups are ignored, as COCO ignores those of other sizes: neither they nor
detections that find them count. A false positive counts in the group of its own size or shape.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from resobj_d2.command import CommandParser, run_command

from .evaluation_set import EvaluationSet
from .matching import Matches, Pairs, match, overlapping_pairs
from .precision import IOU_THRESHOLDS, mean_precision, precision_of_matches
from .source import add_source_options, load_source
from .tables import Row, markdown, write_json

__all__ = ["breakdown_table", "main"]

SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
"""COCO's ranges of areas in square pixels; both ends belong to a range."""

SHAPES = {"tall": (0, 0.5), "compact": (0.5, 2), "wide": (2, np.inf)}
"""Ranges of width / height; both ends belong to a range."""

CROWDING = {"1 to 4": (1, 4), "5 to 14": (5, 14), "15 or more": (15, np.inf)}
"""Numbers of objects in an image."""

OVERLAPS = {"none": (0, 0), "up to .25": (0, 0.25), "above .25": (0.25, 1)}
"""Highest IoU of an object with another one of its class; above the first end, up to the second."""


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """AP and recall, (T, K) from 0 to 1, NaN without objects; and the number of objects."""

    precision: np.ndarray
    recall: np.ndarray
    objects: int

    def row(self, by: str, group: str) -> Row:
        return {
            "by": by,
            "group": group,
            "objects": self.objects,
            "AP": mean_precision(self.precision),
            "AP50": mean_precision(self.precision[:1]),
            "AP75": mean_precision(self.precision[5:6]),
            "AR": mean_precision(self.recall),
        }


def breakdown_table(data: EvaluationSet) -> list[Row]:
    """AP and average recall of groups of objects and images.

    Returns:
        Rows with ``by`` ("all", "class", "size", "shape", "objects in the image", "overlap",
        "IoU"), ``group``, ``objects``, ``AP``, ``AP50``, ``AP75`` and ``AR`` in percent. By overlap
        there is just the recall, since a false positive overlaps nothing of its own; by IoU AP and
        AR are those at this threshold.
    """
    pairs = overlapping_pairs(data, IOU_THRESHOLDS[0])
    found, objects = data.detections, data.objects
    pairs = pairs.take(found.classes[pairs.detections] == objects.classes[pairs.objects])
    matched = [match(data, pairs, t) for t in IOU_THRESHOLDS]
    whole = _judge(data, matched, objects.ignored)
    rows = [whole.row("all", "all")]
    counts = data.positives()
    for number, name in enumerate(data.class_names):
        one = _Judged(
            precision=whole.precision[:, [number]],
            recall=whole.recall[:, [number]],
            objects=int(counts[number]),
        )
        rows.append(one.row("class", name))
    rows += _by_range(data, pairs, "size", SIZES, objects.areas, _areas(found.boxes))
    rows += _by_range(data, pairs, "shape", SHAPES, _shapes(objects.boxes), _shapes(found.boxes))
    rows += _by_crowding(data, matched)
    rows += _by_overlap(data, matched)
    for position, threshold in enumerate(IOU_THRESHOLDS):
        row = whole.row("IoU", f"{threshold:.2f}")
        row["AP"] = mean_precision(whole.precision[position])
        row["AR"] = mean_precision(whole.recall[position])
        rows.append({**row, "AP50": None, "AP75": None})
    return rows


def _areas(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2] * boxes[:, 3]


def _shapes(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2] / np.maximum(boxes[:, 3], 1e-12)


def _judge(
    data: EvaluationSet,
    matched: Sequence[Matches],
    ignored: np.ndarray,
) -> _Judged:
    positives = data.positives(ignored)
    precision, recall = [], []
    for matches in matched:
        precision.append(precision_of_matches(data, matches, ignored=ignored))
        hits = data.detections.classes[matches.correct]
        hits = np.bincount(hits, minlength=data.num_classes)
        nothing = np.full(data.num_classes, np.nan)
        recall.append(np.divide(hits, positives, out=nothing, where=positives > 0))
    return _Judged(
        precision=np.array(precision), recall=np.array(recall), objects=int(positives.sum())
    )


def _by_range(
    data: EvaluationSet,
    pairs: Pairs,
    by: str,
    ranges: Mapping[str, tuple[float, float]],
    of_objects: np.ndarray,
    of_detections: np.ndarray,
) -> Iterator[Row]:
    """Groups that detections belong to as objects do."""
    for group, (low, high) in ranges.items():
        ignored = data.objects.ignored | (of_objects < low) | (of_objects > high)
        outside = (of_detections < low) | (of_detections > high)
        matched = [match(data, pairs, t, ignored=ignored, outside=outside) for t in IOU_THRESHOLDS]
        yield _judge(data, matched, ignored).row(by, group)


def _by_crowding(data: EvaluationSet, matched: Sequence[Matches]) -> Iterator[Row]:
    """Groups of images. Those without objects are in no group."""
    objects = data.objects
    counts = np.bincount(objects.images[~objects.ignored], minlength=len(data.image_ids))
    for group, (low, high) in CROWDING.items():
        chosen = (counts >= low) & (counts <= high)
        outside = ~chosen[data.detections.images]
        some = [Matches(objects=m.objects, ignored=m.ignored | outside) for m in matched]
        ignored = objects.ignored | ~chosen[objects.images]
        yield _judge(data, some, ignored).row("objects in the image", group)


def _by_overlap(data: EvaluationSet, matched: Sequence[Matches]) -> Iterator[Row]:
    overlaps = object_overlaps(data)
    for group, (low, high) in OVERLAPS.items():
        inside = overlaps <= high if high == 0 else (overlaps > low) & (overlaps <= high)
        ignored = data.objects.ignored | ~inside
        some = []
        for m in matched:
            other = (m.objects >= 0) & ignored[m.objects] if len(ignored) else m.ignored
            some.append(Matches(objects=m.objects, ignored=m.ignored | other))
        row = _judge(data, some, ignored).row("overlap", group)
        yield {**row, "AP": None, "AP50": None, "AP75": None}


def object_overlaps(data: EvaluationSet) -> np.ndarray:
    """(N,) highest IoU of each object with another one of its class, crowd regions left out."""
    objects = data.objects
    real = np.flatnonzero(~objects.crowd)
    boxes = objects.take(real)
    as_detections = EvaluationSet(
        name=data.name,
        class_names=data.class_names,
        image_ids=data.image_ids,
        files=data.files,
        sizes=data.sizes,
        objects=boxes,
        detections=type(data.detections)(
            images=boxes.images,
            classes=boxes.classes,
            boxes=boxes.boxes,
            scores=np.ones(len(boxes)),
        ),
    )
    pairs = overlapping_pairs(as_detections, 1e-12)
    other = (pairs.detections != pairs.objects) & (
        boxes.classes[pairs.detections] == boxes.classes[pairs.objects]
    )
    overlaps = np.zeros(len(objects))
    np.maximum.at(overlaps, real[pairs.detections[other]], pairs.ious[other])
    return overlaps


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; returns its exit code."""
    parser = CommandParser(
        prog="resobj-d2 analyze breakdown", description=__doc__.partition("\n")[0]
    )
    add_source_options(parser)
    args = parser.parse_args(argv)
    data = load_source(args.source, args)
    rows = breakdown_table(data)
    print(f"{data.name}, in percent")
    classes = [row for row in rows if row["by"] == "class"]
    others = [row for row in rows if row["by"] not in ("class", "IoU")]
    levels = [{"IoU": r["group"], "AP": r["AP"], "AR": r["AR"]} for r in rows if r["by"] == "IoU"]
    print(f"\n{markdown(others)}")
    classes.sort(key=lambda row: (row["AP"] is None, row["AP"]))
    shown = [{key: value for key, value in row.items() if key != "by"} for row in classes]
    print(f"\nClasses, worst first\n\n{markdown(shown, limit=20)}\n\n{markdown(levels)}")
    if args.json:
        write_json(args.json, {"breakdown": rows})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, uses_operators=False))
