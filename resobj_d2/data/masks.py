"""Masks as annotations hold them: polygons and COCO's run-length encoding."""

from __future__ import annotations

import math
import reprlib
from array import array

import numpy as np

from .values import number_of, whole_number_of

__all__ = ["mended_mask", "read_mask"]

_MOST_PIXELS = 2**31 - 1  # pycocotools counts in 32 bits


def read_mask(segmentation: object, size: tuple[int, int] | None) -> list[np.ndarray] | dict | None:
    """The usable part of a COCO ``segmentation``; None where there is none.

    Polygons need three points or more; a single one may stand without its outer list, and points
    may be pairs or ``{"x": x, "y": y}``. RLE has to be of the picture's size and to add up to it:
    decoders trust it, and write where it says.

    Args:
        segmentation: of a json.
        size: (width, height) of the picture; polygons need none.

    Returns:
        Polygons as (2n,) float64, or RLE with compressed counts.
    """
    if isinstance(segmentation, dict):
        return None if size is None else _read_rle(segmentation, size)
    polygons = [_polygon(values) for values in _polygons_of(segmentation)]
    return [polygon for polygon in polygons if polygon is not None] or None


def mended_mask(
    segmentation: object, size: tuple[int, int] | None
) -> tuple[list[np.ndarray] | dict | None, str, str]:
    """What :func:`read_mask` gives once texts like "3" and, in RLE, fractions like 3.0 are numbers.

    Args:
        segmentation, size: as there.

    Returns:
        The mask; the kind of note (of :data:`.notes.KINDS`) that it deserves, or ""; and what there
        is to note.
    """
    mask = read_mask(segmentation, size)
    if isinstance(segmentation, dict):
        if mask is not None:
            return mask, "", ""
        mask = read_mask(_whole_numbers(segmentation), size)
        kind = "mask" if mask is None else "text_number"
        return mask, kind, reprlib.repr(segmentation)
    parts = _polygons_of(segmentation)
    if isinstance(mask, list) and len(mask) == len(parts):
        return mask, "", ""
    better = [_polygon(_numbers(part)) for part in parts]
    polygons = [polygon for polygon in better if polygon is not None]
    if not polygons:
        return None, "mask", reprlib.repr(segmentation)
    if len(polygons) < len(parts):
        return polygons, "mask_part", f"{len(parts) - len(polygons)} of {len(parts)} polygons"
    return polygons, "text_number", f"segmentation {reprlib.repr(segmentation)}"


def _polygons_of(segmentation: object) -> list:
    """The parts of a ``segmentation`` that is no RLE, each as it stands; [] where it is no list."""
    if not isinstance(segmentation, list):
        return []
    if not all(isinstance(part, (list, dict)) for part in segmentation):
        return [segmentation]
    pairs = all(_is_point(part) for part in segmentation)
    return [segmentation] if segmentation and pairs else segmentation


def _is_point(value: object) -> bool:
    if isinstance(value, dict):
        return value.keys() == {"x", "y"}
    return isinstance(value, list) and len(value) == 2 and not isinstance(value[0], list)


def _coordinates(points: list) -> list:
    """Of points ``[x, y]`` or ``{"x": x, "y": y}`` one after the other."""
    pairs = ([point["x"], point["y"]] if isinstance(point, dict) else point for point in points)
    return [number for pair in pairs for number in pair]


def _numbers(part: object) -> object:
    if not isinstance(part, list):
        return part
    if part and all(_is_point(point) for point in part):
        part = _coordinates(part)
    numbers = [number_of(value) for value in part]
    return part if None in numbers else numbers


def _whole_numbers(rle: dict) -> dict:
    mended = dict(rle)
    for key in ("size", "counts"):
        if isinstance(rle.get(key), list):
            numbers = [whole_number_of(value) for value in rle[key]]
            mended[key] = rle[key] if None in numbers else numbers
    return mended


def _polygon(values: object) -> np.ndarray | None:
    if isinstance(values, list) and values and all(_is_point(point) for point in values):
        values = _coordinates(values)
    if not isinstance(values, list) or len(values) < 6 or len(values) % 2:
        return None
    try:
        numbers = array("d", values)  # several times faster than numpy on a list
    except (TypeError, OverflowError):
        return None
    return np.array(numbers) if math.isfinite(sum(numbers)) else None


def _read_rle(rle: dict, size: tuple[int, int]) -> dict | None:
    width, height = size
    counts = rle.get("counts")
    if rle.get("size") != [height, width] or width * height > _MOST_PIXELS:
        return None
    if isinstance(counts, str):
        runs = _runs(counts)
    elif isinstance(counts, list) and all(type(run) is int for run in counts):
        runs = counts if all(0 <= run <= width * height for run in counts) else None
    else:
        runs = None
    if runs is None or sum(runs) != width * height or min(runs) < 0:
        return None
    if isinstance(counts, list):
        from pycocotools import mask

        encoded = mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        counts = encoded["counts"].decode("ascii")
    return {"size": [height, width], "counts": counts}


def _runs(text: str) -> list[int] | None:
    """The runs of COCO's compressed counts: five bits a character, from the last but one run on."""
    try:
        codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        return None
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 0x20:
        return None
    ends = np.flatnonzero((codes & 0x20) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if digits.max() > 6:  # beyond 35 bits there is no picture
        return None
    values = np.add.reduceat((codes & 0x1F) << (5 * digits), starts)
    negative = (codes[ends] & 0x10) != 0
    values = values - (negative.astype(np.int64) << (5 * (digits[ends] + 1)))
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values.tolist()


def mask_of_box(box: np.ndarray) -> list[list[float]]:
    """A box (x, y, width, height) as a polygon."""
    x, y, width, height = map(float, box)
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    assert all(map(math.isfinite, corners))
    return [corners]
