"""One way to read a picture: every Pillow mode on purpose, and the file named in every error.

Differences from Detectron2's ``read_image``:

- The picture is decoded before its EXIF orientation is read. Pillow finds out about damage while
  it decodes; ``read_image`` reads EXIF first, swallows the error, and gives black rows. It also
  turns a TIFF twice, since Pillow turns those itself.
- 16-bit grey is scaled to 8 bits. ``read_image`` clips it: everything above 255 is white.
- Pictures without a defined white (floating point, 32-bit integers) are refused.
"""

from __future__ import annotations

import io
import logging
import os

import numpy as np
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from PIL import Image, UnidentifiedImageError

__all__ = ["ImageError", "picture_to_rgb", "read_picture"]

logger = logging.getLogger(__name__)

_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Premultiplied colours are divided by their alpha first.
_STRAIGHT_ALPHA = {"La": "LA", "RGBa": "RGBA"}


class ImageError(ValueError):
    """An image that cannot be used, and why."""


def read_picture(path: str | os.PathLike) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 RGB, turned upright as its EXIF data say.

    The first frame of an animation; colour profiles are not applied. Modes as in
    :func:`picture_to_rgb`. A damaged file is refused and never read in part, where the damage can
    be seen: PNG has checksums, but in a format without them a wrong bit is just another colour.

    Args:
        path: a file, or anything that Detectron2's ``PathManager`` opens.

    Raises:
        ImageError: it is missing, damaged, not an image, or its pixels have no 8-bit meaning. The
            message starts with ``path``.
    """
    name = os.fspath(path)
    try:
        with PathManager.open(name, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise ImageError(f"{name}: there is no such file") from None
    except OSError as error:
        raise ImageError(f"{name}: {error.strerror or error}") from error
    try:
        picture = _decode(data)
    # Pillow's readers raise almost anything on a broken file, depending on the format: OSError,
    # SyntaxError, struct.error, IndexError, TypeError, ...
    except Exception as error:
        raise ImageError(f"{name}: {_reason(error, data)}") from error
    return picture_to_rgb(picture, name=name)


def picture_to_rgb(picture: Image.Image, *, name: str = "the picture") -> np.ndarray:
    """A Pillow image as (H, W, 3) uint8 RGB, turned upright as its EXIF data say.

    Grey becomes three equal channels, palettes and CMYK become RGB, and an alpha channel is left
    out: the colours under it count, as in Detectron2, torchvision and OpenCV. Of 16 bits the upper
    8 are kept, as Pillow does for 16-bit colour.

    Args:
        name: what messages call it.

    Raises:
        ImageError: it cannot be decoded, or is of floating point or of integers beyond 16 bits,
            which have no defined white.
    """
    try:
        picture.load()
        picture = _upright(picture, name)
        if picture.mode == "I" or picture.mode.startswith("I;16"):
            return _grey16_to_rgb(np.asarray(picture).astype(np.int64), name)
        if picture.mode != "F":
            picture = picture.convert(_STRAIGHT_ALPHA.get(picture.mode, picture.mode))
            return np.array(picture.convert("RGB"))
    except ImageError:
        raise
    except Exception as error:  # as in read_picture
        raise ImageError(f"{name}: {error}") from error
    raise ImageError(
        f"{name}: floating-point pixels have no defined white; scale them to 0..255 and save them "
        "with 8 bits"
    )


def _decode(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    if picture.format == "PNG":
        picture.verify()  # the checksums of the pixels, which decoding does not look at
        picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that Pillow can read"
    if isinstance(error, Image.DecompressionBombError):
        return f"{error}; if you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS"
    return f"damaged or not supported ({str(error) or type(error).__name__})"


def _upright(picture: Image.Image, name: str) -> Image.Image:
    try:
        orientation = picture.getexif().get(_ORIENTATION)
    except Exception as error:  # the pixels are fine all the same
        logger.warning("%s: its EXIF data cannot be read, so it is not turned: %s", name, error)
        return picture
    method = _UPRIGHT.get(orientation)
    return picture if method is None else picture.transpose(method)


def _grey16_to_rgb(values: np.ndarray, name: str) -> np.ndarray:
    """(H, W) integers in 0..65535 as (H, W, 3) uint8."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{name}: 32-bit pixels from {low} to {high} have no defined white; scale them to 8 or "
            "16 bits"
        )
    if 0 < high < 4096:
        log_first_n(
            logging.WARNING,
            f"{name}: a 16-bit picture whose values end at {high} of 65535 is read as nearly "
            "black; stretch such pictures to the full range (said three times at most)",
            n=3,
            name=__name__,
        )
    grey = (values >> 8).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
