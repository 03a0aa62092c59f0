"""Reading a CSV file with a box on every line."""

from __future__ import annotations

import csv
import io
import os
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .assemble import Rows, assemble, image_table
from .notes import Notes
from .picture_files import PictureFolder, picture_size
from .record import Category, Record, select_classes
from .text_files import read_text
from .values import number_of, whole_number_of

__all__ = ["read_csv"]

# Names of columns without case, spaces and signs.
_FILE = (
    "filename", "file", "image", "imagename", "path", "filepath", "imagepath", "img", "imgpath",
    "imageid",
)  # fmt: skip
_CLASS = ("class", "label", "classname", "category", "categoryname", "labelname", "name", "labels")
_BOXES = {
    ("xmin", "ymin", "xmax", "ymax"): "xyxy",
    ("x1", "y1", "x2", "y2"): "xyxy",
    ("x0", "y0", "x1", "y1"): "xyxy",
    ("left", "top", "right", "bottom"): "xyxy",
    ("bboxx", "bboxy", "bboxwidth", "bboxheight"): "xywh",
    ("xmin", "ymin", "w", "h"): "xywh",
    ("x", "y", "w", "h"): "xywh",
    ("x", "y", "bw", "bh"): "xywh",
    ("xmin", "ymin", "bw", "bh"): "xywh",
    ("x", "y", "boxwidth", "boxheight"): "xywh",
    ("x", "y", "width", "height"): "xywh",
    ("left", "top", "width", "height"): "xywh",
    ("cx", "cy", "w", "h"): "cxcywh",
    ("xcenter", "ycenter", "width", "height"): "cxcywh",
}
_SIZES = (("imagewidth", "imageheight"), ("imgwidth", "imgheight"), ("width", "height"))
# Other columns that may be a box's width and height, or its right and bottom.
_PREFIX = "(b|box|bbox|d|delta|o|obj|object|r|rect|roi)?"
_SIDES = (
    re.compile(_PREFIX + "(w|width|x|xmax|x2|right)"),
    re.compile(_PREFIX + "(h|height|y|ymax|y2|bottom)"),
)
_HEADERLESS = ("path", "x1", "y1", "x2", "y2", "class")


@dataclass(frozen=True)
class _Columns:
    """Positions in a row; ``size`` is empty where the file has no picture sizes."""

    file: int
    label: int
    box: tuple[int, ...]
    size: tuple[int, ...]
    box_format: str


def read_csv(
    csv_file: Path,
    image_root: Path,
    dataset_name: str,
    *,
    classes: Sequence[str] | None = None,
    box_format: str | None = None,
) -> Record:
    """Read a CSV file: a picture, a box and a class on every line.

    Columns are found by their names; without a header they are path, x1, y1, x2, y2, class. A line
    whose box is empty names a picture without objects.

    Args:
        csv_file: separated by commas, semicolons or tabs.
        image_root: what file names are relative to; an ending may be left out.
        classes: names, whose order gives the class numbers; boxes of others are left out. None for
            those of the file in alphabetical order.
        box_format: how boxes are written; None goes by the names of the columns.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: columns are missing, or a line cannot be read; the message names the line.
    """
    where = f"dataset '{dataset_name}' ({csv_file})"
    if not csv_file.is_file():
        raise FileNotFoundError(f"{where}: there is no such csv file")
    numbered = _numbered_rows(csv_file, where)
    columns, has_header = _columns(numbered[0][1], where)
    notes = Notes(where)
    reader = _Reader(where, columns, PictureFolder(image_root), notes)
    for number, row in numbered[has_header:]:
        reader.add(number, row)
    present = set(reader.rows.classes)
    for name in classes or ():
        if name not in present:
            notes.add("absent_class", name)
    names = sorted(present.union(classes or ()))
    numbers = {name: number for number, name in enumerate(names)}
    reader.rows.classes = [numbers[name] for name in reader.rows.classes]
    record = assemble(
        name=dataset_name,
        source=str(csv_file),
        categories=[Category(id=number, name=name) for name, number in numbers.items()],
        images=image_table(reader.ids, [str(path) for path in reader.files], reader.sizes),
        rows=reader.rows,
        notes=notes,
        box_format=box_format or columns.box_format,
        stated=box_format is not None,
    )
    return record if classes is None else select_classes(record, classes)


def _numbered_rows(csv_file: Path, where: str) -> list[tuple[int, list[str]]]:
    """The rows that are not empty, with the numbers of their lines."""
    text = read_text(csv_file, where)
    first = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        lines = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error as error:
        raise ValueError(f"{where}: not valid csv: {error}") from None
    numbered = [
        (n, row) for n, row in enumerate(lines, start=1) if any(cell.strip() for cell in row)
    ]
    if not numbered:
        raise ValueError(f"{where}: the file is empty")
    return numbered


def _columns(header: Sequence[str], where: str) -> tuple[_Columns, bool]:
    shown = reprlib.repr(list(header))
    names = [re.sub(r"[^a-z0-9]", "", cell.lower()) for cell in header]
    files = [names.index(name) for name in _FILE if name in names]
    if not files:
        if len(header) != len(_HEADERLESS) or number_of(header[1].strip() or "0") is None:
            raise ValueError(
                f"{where}: no column names the picture ({', '.join(_FILE[:5])}, ...), and without "
                f"a header the columns are {', '.join(_HEADERLESS)}; the first line is {shown}"
            )
        return _Columns(file=0, label=5, box=(1, 2, 3, 4), size=(), box_format="xyxy"), False
    labels = [names.index(name) for name in _CLASS if name in names]
    boxes = [columns for columns in _BOXES if set(columns) <= set(names)]
    if not labels or not boxes:
        missing = "class (class, label, ...)" if boxes else "box (xmin, ymin, xmax, ymax, ...)"
        raise ValueError(f"{where}: there is no column for the {missing} among {shown}")
    box = boxes[0]
    twice = [name for name in (names[files[0]], names[labels[0]], *box) if names.count(name) > 1]
    if twice:
        raise ValueError(f"{where}: two columns are called {twice[0]!r} among {shown}")
    others = [name for name in names if name not in box]
    if "width" in box and all(any(map(side.fullmatch, others)) for side in _SIDES):
        raise ValueError(
            f"{where}: 'width' and 'height' may be the box's or the picture's among {shown}: call "
            "them image_width and image_height if they are the picture's, or leave out the columns "
            "that are not used"
        )
    sizes = [pair for pair in _SIZES if set(pair) <= set(names) - set(box)]
    return (
        _Columns(
            file=files[0],
            label=labels[0],
            box=tuple(names.index(name) for name in box),
            size=tuple(names.index(name) for name in sizes[0]) if sizes else (),
            box_format=_BOXES[box],
        ),
        True,
    )


class _Reader:
    def __init__(
        self, where: str, columns: _Columns, pictures: PictureFolder, notes: Notes
    ) -> None:
        self.where = where
        self.columns = columns
        self.pictures = pictures
        self.notes = notes
        self.rows = Rows()
        self.images: dict[str, int] = {}  # by name; a picture may have several
        self.rows_of_files: dict[str, int] = {}
        self.ids: list[str] = []
        self.files: list[Path] = []
        self.sizes: list[tuple[int, int]] = []

    def add(self, number: int, row: Sequence[str]) -> None:
        columns, place = self.columns, f"{self.where}: line {number}"
        needed = 1 + max(columns.file, columns.label, *columns.box)
        if len(row) < needed:
            raise ValueError(f"{place} has {len(row)} columns, {needed} are needed")
        name = row[columns.file].strip()
        if not name:
            raise ValueError(f"{place} names no picture")
        image = self._image(name, row, place)
        cells = [row[position].strip() for position in columns.box]
        if not any(cells):
            return
        box = [number_of(cell) for cell in cells]
        if None in box:
            raise ValueError(f"{place}: {cells[box.index(None)]!r} is no number")
        label = row[columns.label].strip()
        if not label:
            raise ValueError(f"{place} has a box without a class")
        self.rows.add(image=image, category=label, box=box, identity=f"line {number}")

    def _image(self, name: str, row: Sequence[str], place: str) -> int:
        if name in self.images:
            return self.images[name]
        file = self._file(name)
        known = self.rows_of_files.setdefault(os.path.normpath(file), len(self.files))
        self.images[name] = known
        if known < len(self.files):
            return known
        sides = [
            whole_number_of(row[i].strip()) if i < len(row) else None for i in self.columns.size
        ]
        if len(sides) == 2 and all(side is not None and 0 < side < 2**31 for side in sides):
            size = (sides[0], sides[1])
        else:
            if not file.is_file():
                raise FileNotFoundError(f"{place}: there is no picture {file}")
            if sides:
                self.notes.add("size_from_picture", name)
            size = picture_size(file)
        self.ids.append(name)
        self.files.append(file)
        self.sizes.append(size)
        return known

    def _file(self, name: str) -> Path:
        path = self.pictures.path / name.replace("\\", "/")
        if "\\" in name:
            self.notes.add("backslash", name)
        return path if path.is_file() or path.suffix else self.pictures.find(path.name)
