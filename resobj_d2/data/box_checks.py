"""Boxes against their pictures: which convention they follow, and which reach out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["BOX_FORMATS", "counts_whole_pixels", "cut_boxes", "other_convention", "to_xywh"]

Convert = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _xyxy(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])


def _cxcywh(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.hstack([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]])


def _normalized(convert: Convert) -> Convert:
    return lambda boxes, sizes: convert(boxes * np.hstack([sizes, sizes]), sizes)


def _xywh(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return boxes


# What ``box_format`` may be: (N, 4) boxes and (N, 2) sizes (width, height) to x, y, width, height.
BOX_FORMATS: dict[str, Convert] = {
    "xywh": _xywh,
    "xyxy": _xyxy,
    "cxcywh": _cxcywh,
    "normalized_xywh": _normalized(_xywh),
    "normalized_xyxy": _normalized(_xyxy),
    "normalized_cxcywh": _normalized(_cxcywh),
}
# Mistakes that cannot be asked for. The first is that of exchanged sides of the pictures too.
_MISTAKES: dict[str, Convert] = {
    "y, x, height, width (or are width and height of the pictures exchanged?)": (
        lambda boxes, sizes: boxes[:, [1, 0, 3, 2]]
    ),
    "y1, x1, y2, x2": lambda boxes, sizes: _xyxy(boxes[:, [1, 0, 3, 2]], sizes),
}
_DESCRIPTIONS = {
    "xywh": "x, y, width, height",
    "xyxy": "x1, y1, x2, y2",
    "cxcywh": "the centre, width, height",
}
_TOLERANCE = 1.0  # pixels; boxes are rounded, and some count the last pixel
_FITTING = 0.99  # share of boxes that another convention has to fit
_DOUBTFUL = 0.9  # below this share of fitting boxes another convention is looked for
_MANY = 3  # boxes that do not fit, for a convention that cannot be asked for


def describe(box_format: str) -> str:
    """A box format in words."""
    plain = box_format.removeprefix("normalized_")
    words = _DESCRIPTIONS.get(plain, plain)
    return words if plain == box_format else f"{words} as parts of the picture (0 to 1)"


def to_xywh(boxes: np.ndarray, sizes: np.ndarray, box_format: str) -> np.ndarray:
    """(N, 4) boxes of one of :data:`BOX_FORMATS` as x, y, width, height in pixels.

    Args:
        boxes: (N, 4) float64.
        sizes: (N, 2) width and height of each box's picture.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return BOX_FORMATS[box_format](boxes, sizes)


def _valid(boxes: np.ndarray) -> np.ndarray:
    return np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)


def _fitting(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    inside = (boxes[:, :2] >= -_TOLERANCE) & (boxes[:, :2] + boxes[:, 2:] <= sizes + _TOLERANCE)
    return inside.all(axis=1) & _valid(boxes)


def other_convention(
    boxes: np.ndarray, sizes: np.ndarray, box_format: str, *, hint: bool = True
) -> str | None:
    """What is wrong with the boxes of a data set as a whole, in words; None where nothing is.

    Boxes that fit their pictures are not doubted. Where more than a tenth do not, but as good as
    all fit when they are read otherwise, that is how they were meant.

    Args:
        boxes: (N, 4) as they are written.
        sizes: (N, 2) width and height of each box's picture.
        box_format: how they are to be read; one of :data:`BOX_FORMATS`.
        hint: say which ``box_format`` to set.
    """
    read = to_xywh(boxes, sizes, box_format)
    usable = _valid(read)
    boxes, sizes, read = boxes[usable], sizes[usable], read[usable]
    if not len(boxes):
        return None
    normalized = box_format.startswith("normalized")
    small = (np.abs(boxes) <= 1.0 + 1e-6).all(axis=1) & (sizes > 2).all(axis=1)
    if not normalized and small.mean() > _DOUBTFUL:
        fits = [
            f for f in BOX_FORMATS if f.startswith("normalized") and _is_fitting(f, boxes, sizes)
        ]
        return _in_words(fits or ["normalized_xywh"], len(boxes), int(small.sum()), hint)
    fitting = _fitting(read, sizes)
    outside = int((~fitting).sum())
    if outside <= (1 - _DOUBTFUL) * len(boxes):
        return None
    fits = [f for f in BOX_FORMATS if f != box_format and _is_fitting(f, boxes, sizes)]
    fits = [f for f in fits if not f.startswith("normalized")]
    if not fits and outside >= _MANY:
        fits = [
            words
            for words, convert in _MISTAKES.items()
            if _share(convert, boxes, sizes) >= _FITTING
        ]
    if fits:
        return _in_words(fits, len(boxes), outside, hint)
    far = int((~_fitting(read, sizes * 1.1)).sum())
    if far > len(boxes) / 2 and far >= _MANY:
        return (
            f"{far} of {len(boxes)} boxes reach far out of their pictures, as if made for pictures "
            "of another size"
        )
    return None


def _share(convert: Convert, boxes: np.ndarray, sizes: np.ndarray) -> float:
    return float(_fitting(convert(boxes, sizes), sizes).mean())


def _is_fitting(box_format: str, boxes: np.ndarray, sizes: np.ndarray) -> bool:
    return _share(BOX_FORMATS[box_format], boxes, sizes) >= _FITTING


def _in_words(formats: list[str], total: int, suspicious: int, hint: bool) -> str:
    if formats[0].startswith("normalized"):
        found = f"{suspicious} of {total} boxes lie between 0 and 1, as parts of the picture"
    else:
        found = f"{suspicious} of {total} boxes reach out of their pictures"
    words = " or ".join(describe(f) for f in formats)
    choices = " or ".join(f"box_format: {f}" for f in formats if f in BOX_FORMATS)
    remedy = f"; if they are that, set {choices}" if hint and choices else ""
    return f"{found}, but fit as {words}{remedy}"


def cut_boxes(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that reach out of their picture by more than half a pixel, cut at its edge.

    What stays below that is rounding, and stays as it is.

    Args:
        boxes: (N, 4) x, y, width, height, sizes positive and finite.
        sizes: (N, 2) width and height of each box's picture.

    Returns:
        The boxes, some with sizes of 0 or less where nothing is left, and (N,) whether it was cut.
    """
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    out = ((low < -0.5) | (high > sizes + 0.5)).any(axis=1)
    if not out.any():
        return boxes, out
    cut = boxes.copy()
    first = np.clip(low[out], 0.0, sizes[out])
    cut[out] = np.hstack([first, np.clip(high[out], 0.0, sizes[out]) - first])
    return cut, out


def counts_whole_pixels(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) which boxes end a pixel before the edge, where that shows a habit; else all False.

    A width that is the difference of two pixel numbers lacks one pixel. It shows where boxes of
    whole numbers start at 0 and end at the last pixel, several times, and none ends at the edge.
    """
    none = np.zeros(len(boxes), dtype=bool)
    if len(boxes) < 20 or (boxes != np.round(boxes)).any():
        return none
    rest = sizes - (boxes[:, :2] + boxes[:, 2:])
    last = (rest == 1).any(axis=1)
    starts = (boxes[:, :2] == 0).any(axis=1)
    if (rest <= 0).any() or last.sum() < 5 or starts.sum() < 5:
        return none
    return last
