"""Sheets of small pictures with their boxes, to look through a dataset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from resobj_d2.data.pictures import ImageError, read_picture
from resobj_d2.data.record import Record
from resobj_d2.inference.drawing import (
    CROWD_COLOR,
    BoxStyle,
    captioned,
    class_color,
    draw_boxes,
    grid,
    save_picture,
)

__all__ = ["chosen_rows", "write_sheets"]

_SIDE = 360  # pixels of the longer side of a picture
_COLUMNS, _ROWS = 5, 5
_LABELS = 25  # boxes of a picture, above which they have no names


def chosen_rows(record: Record, number: int) -> list[int]:
    """Rows of pictures spread evenly over those with objects, then over the empty ones."""
    counts = np.bincount(record.annotations.images, minlength=len(record.images))
    rows: list[int] = []
    for group in (np.flatnonzero(counts > 0), np.flatnonzero(counts == 0)):
        wanted = min(number - len(rows), len(group))
        if wanted > 0:
            rows += group[np.linspace(0, len(group) - 1, wanted).round().astype(int)].tolist()
    return sorted(rows)


def write_sheets(record: Record, folder: Path, number: int) -> list[Path]:
    """Write PNG files of up to 25 pictures each; pictures that cannot be read are left out.

    Args:
        record: the dataset.
        folder: made where it is missing.
        number: of pictures.

    Returns:
        The files, named after the dataset.
    """
    per_image = record.rows_by_image()
    tiles = []
    files: list[Path] = []
    folder.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in record.name)
    for row in chosen_rows(record, number):
        try:
            picture = read_picture(record.images.files[row])
        except ImageError:
            continue
        file = os.path.basename(record.images.files[row])
        tiles.append(_tile(record, picture, per_image[row], file))
        if len(tiles) == _COLUMNS * _ROWS:
            files.append(_write(tiles, folder / f"{name}_{len(files) + 1}.png"))
            tiles = []
    if tiles:
        files.append(_write(tiles, folder / f"{name}_{len(files) + 1}.png"))
    return files


def _tile(record: Record, picture: np.ndarray, rows: np.ndarray, file: str) -> Image.Image:
    table = record.annotations
    boxes = table.boxes[rows]
    boxes = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    styles = []
    for row in rows.tolist():
        number = int(table.classes[row])
        name = "crowd" if table.crowd[row] else record.categories[number].name
        color = CROWD_COLOR if table.crowd[row] else class_color(number)
        styles.append(BoxStyle(name if len(rows) <= _LABELS else "", color))
    return captioned(draw_boxes(picture, boxes, styles, side=_SIDE), file)


def _write(tiles: Sequence[Image.Image], path: Path) -> Path:
    rows = [tiles[i : i + _COLUMNS] for i in range(0, len(tiles), _COLUMNS)]
    save_picture(grid(rows), path)
    return path
