"""The objects of a dataset: counts, and boxes that look like mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from resobj_d2 import ops
from resobj_d2.data.record import Record

from .findings import Finding, finding

__all__ = ["BANDS", "ClassCount", "box_findings", "count_classes", "size_bands"]

BANDS = ("small", "medium", "large")
_LIMITS = (32.0**2, 96.0**2)  # COCO's, in square pixels
TINY = 4.0  # pixels of the shorter side: half a cell of the finest usual feature map
DOUBLED = 0.9  # IoU of two boxes of one class that are probably one object
_AT_ONCE = 1 << 22  # IoUs in memory


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """The objects of one class; crowd regions are not counted.

    Attributes:
        name: of the class.
        objects: how many.
        pictures: that have one.
        bands: objects that are small, medium and large in the picture, by COCO's areas.
        input_bands: the same as the network sees them; None without a network.
        tiny: objects whose shorter side is below 4 pixels, at the network's input where there is
            one.
    """

    name: str
    objects: int
    pictures: int
    bands: tuple[int, ...]
    input_bands: tuple[int, ...] | None
    tiny: int


def size_bands(areas: np.ndarray) -> np.ndarray:
    """(N,) positions in :data:`BANDS` of areas in square pixels."""
    return np.digitize(areas, _LIMITS)


def count_classes(record: Record, scales: np.ndarray | None) -> list[ClassCount]:
    """A row for each class.

    Args:
        record: the dataset.
        scales: (M, 2) width and height of each picture at the network's input, relative to the
            picture's own; None without a network.
    """
    table = record.annotations
    usable = np.flatnonzero(~table.crowd)
    classes, images = table.classes[usable], table.images[usable]
    number = len(record.categories)
    pairs = np.unique(np.stack([classes, images]), axis=1)
    factors = np.ones((len(usable), 2)) if scales is None else scales[images]
    at_input = size_bands(table.areas[usable] * factors.prod(axis=1))
    in_picture = size_bands(table.areas[usable])
    tiny = (table.boxes[usable, 2:] * factors).min(axis=1, initial=np.inf) < TINY

    def per_class(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(chosen, minlength=number)

    objects, pictures = per_class(classes), per_class(pairs[0])
    bands = [per_class(classes[in_picture == band]) for band in range(len(BANDS))]
    seen = [per_class(classes[at_input == band]) for band in range(len(BANDS))]
    small = per_class(classes[tiny])
    return [
        ClassCount(
            name=category.name,
            objects=int(objects[k]),
            pictures=int(pictures[k]),
            bands=tuple(int(band[k]) for band in bands),
            input_bands=None if scales is None else tuple(int(band[k]) for band in seen),
            tiny=int(small[k]),
        )
        for k, category in enumerate(record.categories)
    ]


def box_findings(record: Record, scales: np.ndarray | None) -> list[Finding]:
    """Empty pictures, classes without objects, tiny and doubled boxes; ``scales`` as above."""
    if not record.annotated:
        text = "the set is published without annotations"
        return finding("info", "not_annotated", text, [record.source])
    table = record.annotations
    objects = np.bincount(table.images[~table.crowd], minlength=len(record.images))
    found = np.bincount(table.classes[~table.crowd], minlength=len(record.categories))
    empty = [record.images.files[row] for row in np.flatnonzero(objects == 0)]
    absent = [record.categories[k].name for k in np.flatnonzero(found == 0)]
    if not objects.any():
        text = "there is no object at all, so there is nothing to learn or to find"
        return finding("error", "no_objects", text, [record.source])
    where = "in the picture" if scales is None else "at the network's input"
    return [
        *finding("warning", "no_object_of_class", "classes have no object", absent),
        *finding(
            "warning",
            "doubled",
            f"boxes repeat another one of their class, with an IoU of {DOUBLED} or more",
            doubled_boxes(record),
        ),
        *finding(
            "warning",
            "tiny",
            f"objects are less than {TINY:g} pixels wide or high {where}",
            _tiny(record, scales),
        ),
        *finding("info", "empty", "pictures have no object", empty),
    ]


def _tiny(record: Record, scales: np.ndarray | None) -> list[str]:
    table = record.annotations
    sides = table.boxes[:, 2:] * (1.0 if scales is None else scales[table.images])
    rows = np.flatnonzero((sides < TINY).any(axis=1) & ~table.crowd)
    return [
        f"{_label(record, row)}: {sides[row, 0]:.1f} x {sides[row, 1]:.1f}" for row in rows.tolist()
    ]


def doubled_boxes(record: Record) -> list[str]:
    """Boxes that are as good as equal to an earlier one of their image and class."""
    table = record.annotations
    corners = np.hstack([table.boxes[:, :2], table.boxes[:, :2] + table.boxes[:, 2:]])
    doubled = []
    for rows in record.rows_by_image():
        rows = rows[~table.crowd[rows]]
        if len(rows) < 2:
            continue
        for i, k, iou in _repeating(corners[rows], table.classes[rows]):
            first, second = rows[i], rows[k]
            doubled.append(f"{_label(record, second)} and {table.ids[first]}, IoU {iou:.2f}")
    return doubled


def _repeating(boxes: np.ndarray, classes: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Of each box that repeats an earlier one: the one it overlaps most, itself, the IoU."""
    tensor = torch.from_numpy(boxes)
    places = np.arange(len(boxes))
    step = max(1, _AT_ONCE // len(boxes))
    for start in range(0, len(boxes), step):
        part = places[start : start + step, None]
        ious = ops.pairwise_box_iou(tensor[start : start + step], tensor).numpy()
        ious = np.where((places < part) & (classes == classes[part]), ious, 0.0)
        best = ious.argmax(axis=1)
        found = ious[np.arange(len(best)), best]
        for k in np.flatnonzero(found >= DOUBLED).tolist():
            yield int(best[k]), start + k, float(found[k])


def _label(record: Record, row: int) -> str:
    table = record.annotations
    name = record.categories[table.classes[row]].name
    return f"{record.file_of(row)}: {name} {table.ids[row]}"
