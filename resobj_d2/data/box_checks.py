"""Boxes against their pictures: which convention they follow, and which reach out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from resobj_d2.process import agreeing, counted

__all__ = [
    "BOX_FORMATS",
    "MANY",
    "Misreading",
    "counts_whole_pixels",
    "cut_boxes",
    "other_convention",
    "to_xywh",
]

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
# Mistakes that cannot be asked for: the order of the columns, the format that they then have, and
# what the user can do. The first is that of exchanged sides of the pictures too.
_MISTAKES: dict[str, tuple[list[int], str, str]] = {
    "y, x, height, width (or are width and height of the pictures exchanged?)": (
        [1, 0, 3, 2],
        "xywh",
        "exchange them",
    ),
    "y1, x1, y2, x2": ([1, 0, 3, 2], "xyxy", "exchange x and y"),
    "x2, y2, x1, y1": ([2, 3, 0, 1], "xyxy", "exchange the corners"),
    "x1, x2, y1, y2": ([0, 2, 1, 3], "xyxy", "exchange the second and third number"),
}
_DESCRIPTIONS = {
    "xywh": "x, y, width, height",
    "xyxy": "x1, y1, x2, y2",
    "cxcywh": "the centre, width, height",
}
_TOLERANCE = 1.0  # pixels; boxes are rounded, and some count the last pixel
_FITTING = 0.99  # share of boxes that another convention has to fit
_DOUBTFUL = 0.9  # below this share of fitting boxes another convention is looked for
MANY = 3  # boxes that are no chance
_PARTS = 1.5  # numbers up to here are parts of the picture; some boxes reach out of it


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
    with np.errstate(over="ignore", invalid="ignore"):  # of numbers as 1e308
        ends = boxes[:, :2] + boxes[:, 2:]
    inside = (boxes[:, :2] >= -_TOLERANCE) & (ends <= sizes + _TOLERANCE)
    return inside.all(axis=1) & _valid(boxes)


@dataclass(frozen=True)
class Misreading:
    """What is wrong with the boxes of a dataset as a whole.

    Attributes:
        text: in words.
        count: boxes that show it.
        certain: whether no ``box_format`` that a user states can be right: parts of the picture are
            read as pixels, or the other way round.
    """

    text: str
    count: int
    certain: bool = False


def other_convention(
    boxes: np.ndarray,
    sizes: np.ndarray,
    box_format: str,
    *,
    hint: bool = True,
    stated: bool = False,
) -> Misreading | None:
    """What is wrong with the boxes of a dataset as a whole; None where nothing is.

    Boxes that fit their pictures are not doubted. Where more than a tenth do not, but as good as
    all fit when they are read otherwise, that is how they were meant.

    Args:
        boxes: (N, 4) as they are written.
        sizes: (N, 2) width and height of each box's picture.
        box_format: how they are to be read; one of :data:`BOX_FORMATS`.
        hint: say which ``box_format`` to set.
        stated: whether the user has said ``box_format`` already.
    """
    # What has a size in no format says nothing about the format.
    plain = [to_xywh(boxes, sizes, name) for name in _DESCRIPTIONS]
    usable = np.any([_valid(read) for read in plain], axis=0)
    boxes, sizes = boxes[usable], sizes[usable]
    if not len(boxes):
        return None
    parts = (np.abs(boxes) <= _PARTS).all(axis=1) & (sizes > 2).all(axis=1)
    are_parts = bool(parts.mean() > _DOUBTFUL)
    others = [f for f in BOX_FORMATS if f.startswith("normalized") == are_parts and f != box_format]
    if are_parts and not box_format.startswith("normalized"):
        fits = [f for f in others if _share(f, boxes, sizes) >= _FITTING] or others
        count = int(parts.sum())
        found = f"{count} of {counted(len(boxes), 'box')} {agreeing(count, 'lie')} between 0 and 1"
        text = _in_words(f"{found}, as parts of the picture", fits, hint)
        return Misreading(text, count, certain=True)
    certain = box_format.startswith("normalized") and bool(parts.mean() < 1 - _DOUBTFUL)
    misfit, shapeless = _misfits(boxes, sizes, box_format)
    if not misfit.any():
        return None
    fits = [f for f in others if _share(f, boxes, sizes) >= _FITTING]
    if not fits and misfit.sum() >= MANY:
        fits = [f for f in _MISTAKES if _share(f, boxes, sizes, are_parts) >= _FITTING]
    if fits:
        count = int(misfit.sum())
        whose = "its picture" if count == 1 else "their pictures"
        outside = f"{agreeing(count, 'reach')} out of {whose}"
        kinds = [outside] * bool((misfit & ~shapeless).any())
        kinds += [f"{agreeing(count, 'have')} no positive size"] * bool(shapeless.any())
        found = f"{count} of {counted(len(boxes), 'box')} {' or '.join(kinds)}"
        text = _in_words(found, fits, hint)
        if hint and not certain and not stated:
            fate = "leaves them out" if shapeless.any() else "cuts them"
            text += f"; if they are not, box_format: {box_format} {fate}"
        return Misreading(text, int(misfit.sum()), certain=certain)
    read = to_xywh(boxes, sizes, box_format)
    far = int((~_fitting(read, sizes * 1.1) & ~shapeless).sum())
    if far > (~shapeless).sum() / 2 and far >= MANY:
        return Misreading(
            f"{far} of {len(boxes)} boxes reach far out of their pictures, as if made for pictures "
            "of another size",
            far,
            certain=certain,
        )
    return None


def _misfits(
    boxes: np.ndarray, sizes: np.ndarray, box_format: str
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) which boxes do not fit their pictures, and which of them have no size; none where they
    are too few to doubt the format."""
    read = to_xywh(boxes, sizes, box_format)
    misfit, shapeless = ~_fitting(read, sizes), ~_valid(read)
    few = 1 - _DOUBTFUL
    if (misfit & ~shapeless).sum() > few * (~shapeless).sum():
        return misfit, shapeless
    if shapeless.sum() >= MANY and misfit.sum() > few * len(boxes):
        return misfit, shapeless
    return np.zeros_like(misfit), shapeless


def _share(name: str, boxes: np.ndarray, sizes: np.ndarray, are_parts: bool = False) -> float:
    """Of boxes that fit their pictures when they are read as a format or a mistake."""
    if name in _MISTAKES:
        columns, name, _ = _MISTAKES[name]
        boxes = boxes[:, columns]
        name = f"normalized_{name}" if are_parts else name
    return float(_fitting(to_xywh(boxes, sizes, name), sizes).mean())


def _in_words(found: str, fits: list[str], hint: bool) -> str:
    words = " or ".join(describe(f) for f in fits)
    choices = " or ".join(f"box_format: {f}" for f in fits if f in BOX_FORMATS)
    remedy = f"set {choices}" if hint and choices else ""
    if fits[0] in _MISTAKES:
        remedy = _MISTAKES[fits[0]][2]
    return f"{found}, but fit as {words}" + (f"; if they are that, {remedy}" if remedy else "")


def cut_boxes(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that reach out of their picture by more than half a pixel, cut at its edge.

    What stays below that is rounding, and stays as it is.

    Args:
        boxes: (N, 4) x, y, width, height, sizes positive and finite.
        sizes: (N, 2) width and height of each box's picture.

    Returns:
        The boxes, some with sizes of 0 or less where nothing is left, and (N,) whether it was cut.
    """
    with np.errstate(over="ignore"):  # of numbers as 1e308
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
