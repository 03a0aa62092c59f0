"""From the rows that a format's reader collects to a checked record."""

from __future__ import annotations

import dataclasses
import os
import re
import reprlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .box_checks import MANY, counts_whole_pixels, cut_boxes, other_convention, to_xywh
from .notes import Notes
from .record import AnnotationTable, Category, ImageTable, Record

__all__ = ["Rows", "assemble", "image_table"]

_LOST = 0.1  # share of the boxes that may be lost without refusing to use the rest
# Half a surrogate pair, which is no text, stands for a byte of a file name that is not UTF-8.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(kw_only=True)
class Rows:
    """Annotations as a reader collects them: a value in each list for each annotation.

    Attributes:
        images, classes: rows of the images and class numbers; any integers until they are known.
        boxes: four numbers each, in any box format.
        areas: NaN for the area of the box.
        others: as in :class:`.record.AnnotationTable`.
    """

    ids: list = field(default_factory=list)
    images: list = field(default_factory=list)
    classes: list = field(default_factory=list)
    boxes: array = field(default_factory=lambda: array("d"))
    areas: array = field(default_factory=lambda: array("d"))
    crowd: bytearray = field(default_factory=bytearray)
    difficult: bytearray = field(default_factory=bytearray)
    masks: list = field(default_factory=list)
    keypoints: list = field(default_factory=list)

    def add(
        self,
        *,
        image: int,
        category: int,
        box: Sequence[float],
        crowd: int = 0,
        difficult: int = 0,
        mask: list[np.ndarray] | None = None,
        keypoints: np.ndarray | None = None,
        identity: int | str | None = None,
    ) -> None:
        """Append an annotation; without ``identity`` they are numbered from 1."""
        self.ids.append(len(self.ids) + 1 if identity is None else identity)
        self.images.append(image)
        self.classes.append(category)
        self.boxes.extend(box)
        self.areas.append(float("nan"))
        self.crowd.append(crowd)
        self.difficult.append(difficult)
        self.masks.append(mask)
        self.keypoints.append(keypoints)


def image_table(
    ids: Sequence[int | str],
    files: Sequence[str],
    sizes: Sequence[tuple[int, int]],
) -> ImageTable:
    """From ids, files and sizes (width, height)."""
    columns = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
    return ImageTable(ids=list(ids), files=list(files), widths=columns[:, 0], heights=columns[:, 1])


def assemble(
    *,
    name: str,
    source: str,
    categories: Sequence[Category],
    images: ImageTable,
    rows: Rows,
    notes: Notes,
    box_format: str = "xywh",
    stated: bool = False,
    refuse: bool = True,
    annotated: bool = True,
) -> Record:
    """Check the boxes against their pictures and make the record; log what was noted.

    Args:
        rows: with rows of images and class numbers.
        notes: of the reader.
        box_format: of the boxes; one of :data:`.box_checks.BOX_FORMATS`.
        stated: whether the user has said it: boxes that seem to be of another convention are then
            noted, and refused only where parts of the picture are read as pixels, or pixels as
            parts.
        refuse: whether they are refused at all; False for a dataset that other code registered.

    Raises:
        ValueError: the boxes follow another convention than ``box_format``; the name of a class or
            file has control characters, which would act on the terminal that shows it.
    """
    _refuse_unsafe(categories, images, rows, notes.where)
    _note_shared_files(images, notes)
    table = AnnotationTable(
        ids=rows.ids,
        images=np.asarray(rows.images, dtype=np.int64),
        classes=np.asarray(rows.classes, dtype=np.int64),
        boxes=np.frombuffer(rows.boxes).reshape(-1, 4) if rows.ids else np.zeros((0, 4)),
        areas=np.array(rows.areas, dtype=np.float64),
        crowd=np.frombuffer(rows.crowd, dtype=bool) if rows.ids else np.zeros(0, dtype=bool),
        difficult=np.frombuffer(rows.difficult, dtype=bool)
        if rows.ids
        else np.zeros(0, dtype=bool),
        masks=rows.masks,
        keypoints=_checked_keypoints(rows, images, categories, notes),
    )
    table = _fitted(table, images, notes, box_format, stated=stated, refuse=refuse)
    notes.log()
    return Record(
        name=name,
        source=source,
        categories=tuple(categories),
        images=images,
        annotations=table,
        annotated=annotated,
        notes=notes.found(),
    )


def _refuse_unsafe(
    categories: Sequence[Category], images: ImageTable, rows: Rows, where: str
) -> None:
    for text in (*(category.name for category in categories), *images.files):
        if _UNSAFE.search(text):
            raise ValueError(
                f"{where}: the name {text!r} has control characters, or is no valid text "
                "(UTF-8): rename it"
            )
    for kind, ids in (("image", images.ids), ("annotation", rows.ids)):
        for identity in ids:
            if type(identity) is str and _UNSAFE.search(identity):
                raise ValueError(
                    f"{where}: the id {identity!r} of an {kind} has control characters, or "
                    "is no valid text (UTF-8)"
                )


def _fitted(
    table: AnnotationTable,
    images: ImageTable,
    notes: Notes,
    box_format: str,
    *,
    stated: bool,
    refuse: bool,
) -> AnnotationTable:
    """The usable boxes in pixels, if they are of the format; the arguments of :func:`assemble`."""
    sizes = np.stack([images.widths, images.heights], axis=1)[table.images].astype(np.float64)
    wrong = other_convention(table.boxes, sizes, box_format, hint=refuse, stated=stated)
    if wrong is not None:
        if refuse and (wrong.certain or not stated):
            raise ValueError(f"{notes.where}: {wrong.text}")
        notes.add("convention", wrong.text, count=wrong.count)
    written = len(table)
    table = _checked(table, images, sizes, notes, box_format)
    lost = written - len(table)
    if refuse and not stated and lost >= MANY and lost > _LOST * written:
        notes.add("lossy", f"{len(table)} of {written} boxes stay", count=lost)
    return table


def _note_shared_files(images: ImageTable, notes: Notes) -> None:
    files = [os.path.normpath(file) for file in images.files if file and not file.endswith("/")]
    if len(set(files)) < len(files):
        for file, count in Counter(files).items():
            if count > 1:
                notes.add("same_file", f"{file}: {count} images")


def _checked_keypoints(
    rows: Rows, images: ImageTable, categories: Sequence[Category], notes: Notes
) -> list[np.ndarray | None]:
    """The keypoints that fit their category; None in place of others."""
    checked = list(rows.keypoints)
    for row, points in enumerate(checked):
        if points is None:
            continue
        count = len(categories[rows.classes[row]].keypoints)
        if (
            (count and len(points) != count)
            or not np.isfinite(points).all()
            or not np.isin(points[:, 2], (0, 1, 2)).all()
        ):
            label = f"annotation {rows.ids[row]} of image {images.ids[rows.images[row]]}"
            notes.add("keypoints", f"{label}: {reprlib.repr(points.ravel().tolist())}")
            checked[row] = None
    return checked


def _checked(
    table: AnnotationTable, images: ImageTable, sizes: np.ndarray, notes: Notes, box_format: str
) -> AnnotationTable:
    written, boxes = table.boxes, to_xywh(table.boxes, sizes, box_format)
    usable = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    _note_rows(notes, "no_size", ~usable, table, images, written)
    cut, is_cut = cut_boxes(np.where(usable[:, None], boxes, 0.0), sizes)
    is_cut &= usable
    outside = is_cut & (cut[:, 2:] <= 0).any(axis=1)
    _note_rows(notes, "outside", outside, table, images, written)
    _note_rows(notes, "cut", is_cut & ~outside, table, images, written)
    areas = np.where(
        np.isnan(table.areas) | (is_cut & _are_of_boxes(table, boxes)),
        cut[:, 2] * cut[:, 3],
        table.areas,
    )
    table = dataclasses.replace(table, boxes=cut, areas=areas)
    kept = usable & ~outside
    if not kept.all():
        table, sizes, written = table.take(kept), sizes[kept], written[kept]
    _note_rows(notes, "twice", _repeated(table), table, images, written)
    habit = counts_whole_pixels(table.boxes, sizes)
    _note_rows(notes, "whole_pixels", habit, table, images, written)
    percent = _looks_like_percent(table.boxes, sizes)
    _note_rows(notes, "percent", percent, table, images, written)
    return table


def _are_of_boxes(table: AnnotationTable, boxes: np.ndarray) -> np.ndarray:
    """(N,) which areas are those of the boxes, and not of a mask that is smaller or stays whole."""
    with np.errstate(over="ignore", invalid="ignore"):
        own = np.isclose(table.areas, boxes[:, 2] * boxes[:, 3], rtol=1e-3, atol=0.5)
    return own & np.fromiter((mask is None for mask in table.masks), bool, len(table))


def _note_rows(
    notes: Notes,
    kind: str,
    chosen: np.ndarray,
    table: AnnotationTable,
    images: ImageTable,
    boxes: np.ndarray,
) -> None:
    rows = np.flatnonzero(chosen)
    for row in rows[:3]:
        box = ", ".join(f"{value:g}" for value in boxes[row])
        image = images.ids[table.images[row]]
        notes.add(kind, f"annotation {table.ids[row]} of image {image}: [{box}]")
    if len(rows) > 3:
        notes.add(kind, "", count=len(rows) - 3)


def _repeated(table: AnnotationTable) -> np.ndarray:
    """(N,) which rows repeat an earlier one in image, class, box and crowd."""
    corners = np.ascontiguousarray(table.boxes).view(np.uint64).reshape(-1, 4)
    columns = [table.images, table.classes, table.crowd, *corners.T]
    factors = np.random.default_rng(0).integers(1, 2**63, size=len(columns), dtype=np.uint64)
    digest = np.zeros(len(table), dtype=np.uint64)
    for column, factor in zip(columns, factors, strict=True):
        mixed = column.astype(np.uint64) * (factor | np.uint64(1))
        digest ^= mixed ^ (mixed >> np.uint64(29))
    order = np.argsort(digest, kind="stable")
    same = digest[order[1:]] == digest[order[:-1]]
    later, earlier = order[1:][same], order[:-1][same]
    equal = np.ones(len(later), dtype=bool)
    for column in columns:
        equal &= column[later] == column[earlier]
    repeated = np.zeros(len(table), dtype=bool)
    repeated[later[equal]] = True
    return repeated


def _looks_like_percent(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    ends = boxes[:, :2] + boxes[:, 2:]
    is_percent = (
        len(boxes) >= 20
        and (sizes >= 200).all()
        and (ends <= 100.5).all()
        and (ends.max(axis=0) >= 90).all()
    )
    return np.full(len(boxes), is_percent)
