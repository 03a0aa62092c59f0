"""From the modes of Pillow to 8-bit RGB, in bands of rows: large pictures need less memory."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

__all__ = ["ImageError", "say_once", "to_rgb"]

logger = logging.getLogger("resobj_d2.data.pictures")

_BAND = 2**22  # pixels
# Premultiplied colours are divided by their alpha first.
_STRAIGHT_ALPHA = {"La": "LA", "RGBa": "RGBA"}
_REFUSED = {
    "F": "floating-point pixels have no defined white; scale them to 0..255 and save them with 8 "
    "bits",
    "LAB": "colours in L*a*b* are not supported; save it as RGB",
}
# A byte for each topic that has been said, in memory that the workers of a data loader share.
_TOPICS = ("16 bits", "frames")
_said = mmap.mmap(-1, len(_TOPICS))


class ImageError(ValueError):
    """An image that cannot be used, and why."""


def say_once(topic: str, message: str) -> None:
    """A warning, once for each of ``_TOPICS`` in a process and those that are forked from it."""
    position = _TOPICS.index(topic)
    if not _said[position]:
        _said[position] = 1
        logger.warning("%s (said once)", message)


def to_rgb(picture: Image.Image, lower: Image.Image | None, name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB, as it is stored: not turned.

    Args:
        picture: decoded.
        lower: of 16-bit colour the lower bytes; ``picture`` has the upper ones.
        name: what messages call it.

    Raises:
        ImageError: its values have no defined white.
    """
    if picture.mode in _REFUSED:
        raise ImageError(f"{name}: {_REFUSED[picture.mode]}")
    if lower is not None:
        return _scaled(picture.size, lambda: _colors(picture, lower), name)
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return _scaled(picture.size, lambda: _greys(picture), name)
    pixels = _empty(picture.size)
    for top, band in _bands(picture):
        pixels[top : top + band.height] = np.asarray(_straight(band).convert("RGB"))
    return pixels


def _empty(size: tuple[int, int]) -> np.ndarray:
    return np.empty((size[1], size[0], 3), dtype=np.uint8)


def _bands(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Rows of a picture, with the number of the first."""
    width, height = picture.size
    rows = max(1, _BAND // width)
    if height <= rows:
        yield 0, picture
        return
    for top in range(0, height, rows):
        yield top, picture.crop((0, top, width, min(top + rows, height)))


def _straight(band: Image.Image) -> Image.Image:
    if band.mode == "P" and "transparency" in band.info:
        return band.convert("RGBA")  # Pillow warns of a direct way
    return band.convert(_STRAIGHT_ALPHA[band.mode]) if band.mode in _STRAIGHT_ALPHA else band


def _greys(picture: Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    for top, band in _bands(picture):
        yield top, np.asarray(band)[:, :, None]


def _colors(upper: Image.Image, lower: Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    for (top, high), (_, low) in zip(_bands(upper), _bands(lower), strict=True):
        yield top, np.asarray(high)[..., :3].astype(np.uint16) << 8 | np.asarray(low)[..., :3]


def _scaled(
    size: tuple[int, int], bands: Callable[[], Iterator[tuple[int, np.ndarray]]], name: str
) -> np.ndarray:
    """Integers in 0..65535, scaled by their range: 256 steps of equal width."""
    limits = [(int(values.min()), int(values.max())) for _, values in bands()]
    low, high = min(x for x, _ in limits), max(x for _, x in limits)
    if low < 0 or high > 65535:
        raise ImageError(
            f"{name}: 32-bit pixels from {low} to {high} have no defined white; scale them to 8 or "
            "16 bits"
        )
    text = f"16-bit pixels are scaled by the picture's own range, here {low}..{high} to 0..255"
    say_once("16 bits", f"{name}: {text}")
    pixels = _empty(size)
    for top, values in bands():
        pixels[top : top + len(values)] = _to_8_bits(values, low, high)
    return pixels


def _to_8_bits(values: np.ndarray, low: int, high: int) -> np.ndarray:
    scaled = values.astype(np.int32)
    if low == high:  # one value has no range
        return scaled >> 8
    scaled -= low
    scaled *= 256
    scaled //= high - low + 1
    return scaled
