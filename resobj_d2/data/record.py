"""One dataset as it is used: what training, evaluation, analysis and prediction read.

Every format is read into a :class:`Record` once, when the dataset is registered or first needed,
and nothing reads the source again. Its values are checked: numbers are numbers, boxes lie in their
pictures, references resolve. What had to be changed for that is in :attr:`Record.notes`.

Needs no Detectron2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .notes import Note, Notes

__all__ = ["AnnotationTable", "Category", "ImageTable", "Record", "select_classes"]


@dataclass(frozen=True, kw_only=True)
class Category:
    """A class of objects.

    Attributes:
        id: the dataset's own; in formats without ids the class number.
        name: not empty, different from that of every other class.
        keypoints: names; empty without keypoints.
        skeleton: pairs of positions in ``keypoints``, from 0.
    """

    id: int
    name: str
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class ImageTable:
    """M pictures, a row each.

    Attributes:
        ids: the dataset's own, all different.
        files: paths.
        widths, heights: (M,) int64, positive, in pixels of the picture turned upright.
    """

    ids: list[int | str]
    files: list[str]
    widths: np.ndarray
    heights: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class AnnotationTable:
    """N objects, a row each.

    Attributes:
        ids: the dataset's own, for messages; all different.
        images: (N,) int64, rows of the :class:`ImageTable`.
        classes: (N,) int64, class numbers 0..K-1.
        boxes: (N, 4) float64 x, y, width, height in pixels from the picture's corner; the sizes are
            positive and finite, and no box reaches out of its picture by more than half a pixel.
        areas: (N,) float64 in square pixels, which decides about small, medium and large.
        crowd: (N,) bool, regions that are not trained on and that the evaluation ignores.
        difficult: (N,) bool, objects that are trained on and that the evaluation ignores.
        masks: None, polygons as arrays (x0, y0, x1, y1, ...), or COCO's RLE ``{"size", "counts"}``.
        keypoints: None, or (keypoints, 3) float64 x, y, visibility (0, 1, 2) as in COCO: pixel
            indices, so that a pixel's centre has whole coordinates.
    """

    ids: list[int | str]
    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    masks: list[None | list[np.ndarray] | dict]
    keypoints: list[None | np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> AnnotationTable:
        """The table of these rows: (n,) row numbers, or (N,) bool."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        chosen = {}
        for field in dataclasses.fields(self):
            column = getattr(self, field.name)
            is_array = isinstance(column, np.ndarray)
            chosen[field.name] = column[rows] if is_array else [column[row] for row in rows]
        return AnnotationTable(**chosen)


@dataclass(frozen=True, kw_only=True)
class Record:
    """A dataset.

    Attributes:
        name: as registered.
        source: the file or folder it was read from, for messages.
        categories: by class number.
        images, annotations: see there.
        annotated: False for a test set that is published without its annotations.
        notes: what was changed and what is remarkable, as the warnings said.
    """

    name: str
    source: str
    categories: tuple[Category, ...]
    images: ImageTable
    annotations: AnnotationTable
    annotated: bool = True
    notes: tuple[Note, ...] = ()

    @property
    def class_names(self) -> list[str]:
        """By class number."""
        return [category.name for category in self.categories]

    @property
    def class_numbers(self) -> dict[int, int]:
        """Category ids to class numbers."""
        return {category.id: number for number, category in enumerate(self.categories)}

    def rows_by_image(self) -> list[np.ndarray]:
        """For every image the rows of its annotations, in the order of the source."""
        order = np.argsort(self.annotations.images, kind="stable")
        ends = np.cumsum(np.bincount(self.annotations.images, minlength=len(self.images)))
        return np.split(order, ends[:-1]) if len(self.images) else []

    def file_of(self, row: int) -> str:
        """The picture of an annotation's row."""
        return self.images.files[self.annotations.images[row]]


def select_classes(record: Record, names: Sequence[str]) -> Record:
    """A record of some classes in an order of one's own; every image stays.

    Args:
        names: class names; their order gives the class numbers.

    Raises:
        ValueError: the dataset has no class of that name.
    """
    by_name = {
        category.name: (number, category) for number, category in enumerate(record.categories)
    }
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(
            f"dataset '{record.name}' ({record.source}) has no class "
            f"{', '.join(map(repr, missing))} of 'classes'; it has {', '.join(by_name)}"
        )
    table = record.annotations
    numbers = np.full(len(record.categories), -1, dtype=np.int64)
    for new, name in enumerate(names):
        numbers[by_name[name][0]] = new
    classes = numbers[table.classes]
    notes = Notes(f"dataset '{record.name}' ({record.source})")
    left_out = np.bincount(table.classes[classes < 0], minlength=len(record.categories))
    for number in np.flatnonzero(left_out):
        notes.add("other_class", record.categories[number].name, count=int(left_out[number]))
    notes.log()
    table = dataclasses.replace(table, classes=classes).take(classes >= 0)
    return dataclasses.replace(
        record,
        categories=tuple(by_name[name][1] for name in names),
        annotations=table,
        notes=(*record.notes, *notes.found()),
    )
