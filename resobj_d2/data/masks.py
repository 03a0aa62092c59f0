"""Masks as annotations hold them: polygons and COCO's run-length encoding."""

from __future__ import annotations

import math
from array import array

import numpy as np

__all__ = ["read_mask"]


def read_mask(segmentation: object, size: tuple[int, int] | None) -> list[np.ndarray] | dict | None:
    """The usable part of a COCO ``segmentation``; None where there is none.

    Polygons need three points or more; a single one may stand without its outer list. RLE has to be
    of the picture's size and to add up to it: decoders trust it, and write where it says.

    Args:
        segmentation: of a json.
        size: (width, height) of the picture; polygons need none.

    Returns:
        Polygons as (2n,) float64, or RLE with compressed counts.
    """
    if isinstance(segmentation, dict):
        return None if size is None else _read_rle(segmentation, size)
    if not isinstance(segmentation, list) or not segmentation:
        return None
    if all(type(value) in (int, float) for value in segmentation):
        segmentation = [segmentation]
    polygons = [_polygon(values) for values in segmentation]
    return [polygon for polygon in polygons if polygon is not None] or None


def _polygon(values: object) -> np.ndarray | None:
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
    if rle.get("size") != [height, width]:
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
