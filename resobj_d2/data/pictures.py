"""One way to read a picture: every Pillow mode on purpose, and the file named in every error.

Training, evaluation and prediction read through this module, so that a file has the same pixels in
each. Differences from Detectron2's ``read_image``:

- The picture is decoded before its EXIF orientation is read. Pillow finds out about damage while
  it decodes; ``read_image`` reads EXIF first, swallows the error, and gives black rows. It also
  turns a TIFF twice, since Pillow turns those itself.
- 16-bit grey is scaled to 8 bits by the range of its values. ``read_image`` clips it: everything
  above 255 is white.
- Pictures without a defined white (floating point, 32-bit integers) are refused, and so are
  pictures larger than Pillow's ``MAX_IMAGE_PIXELS``.
- PostScript (EPS) is refused: Pillow would hand it to Ghostscript, which runs it.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import re
import sys

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

__all__ = ["ImageError", "picture_to_rgb", "read_label_map", "read_picture", "rgb_to_format"]

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

    The first frame of an animation or of a TIFF with several pages; colour profiles are not
    applied. Modes as in :func:`picture_to_rgb`; 16-bit colour of PNG and TIFF is scaled like 16-bit
    grey, by one range for the three channels. A damaged file is refused and never read in part,
    where the damage can be seen: PNG has checksums, but in a format without them a wrong bit is
    just another colour.

    Args:
        path: a file, or anything that Detectron2's ``PathManager`` opens.

    Raises:
        ImageError: it is missing, damaged, too large, not an image, or its pixels have no 8-bit
            meaning. The message starts with ``path``.
    """
    name = os.fspath(path)
    return picture_to_rgb(_open(name), name=name)


def read_label_map(path: str | os.PathLike) -> np.ndarray:
    """Read the labels of pixels, as of semantic segmentation: (H, W) integers as they are stored.

    Grey values, or the numbers of a palette's entries: not their colours.

    Raises:
        ImageError: as :func:`read_picture`; or it has colours.
    """
    name = os.fspath(path)
    picture = _upright(_open(name), name)
    if picture.mode not in ("1", "L", "P", "I") and not picture.mode.startswith("I;16"):
        raise ImageError(f"{name}: labels must be grey or a palette's, not {picture.mode} pixels")
    labels = np.asarray(picture)
    return labels if labels.dtype == np.uint8 else labels.astype(np.int32)


def rgb_to_format(rgb: np.ndarray, image_format: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB as Detectron2 hands it to a model of this ``INPUT.FORMAT``.

    Args:
        image_format: "BGR", "RGB", or another that Detectron2 knows, as "L".
    """
    if image_format == "RGB":
        return rgb
    if image_format == "BGR":
        return rgb[:, :, ::-1]
    return convert_PIL_to_numpy(Image.fromarray(rgb), image_format)


def _open(name: str) -> Image.Image:
    """The decoded picture of a file."""
    try:
        with PathManager.open(name, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise ImageError(f"{name}: there is no such file") from None
    except OSError as error:
        raise ImageError(f"{name}: {error.strerror or error}") from error
    try:
        return _decode(data, name)
    except ImageError:
        raise
    # Pillow's readers raise almost anything on a broken file, depending on the format: OSError,
    # SyntaxError, struct.error, IndexError, TypeError, ...
    except Exception as error:
        raise ImageError(f"{name}: {_reason(error, data)}") from error


def picture_to_rgb(picture: Image.Image, *, name: str = "the picture") -> np.ndarray:
    """A Pillow image as (H, W, 3) uint8 RGB, turned upright as its EXIF data say.

    Grey becomes three equal channels, palettes and CMYK become RGB, and an alpha channel is left
    out: the colours under it count, as in Detectron2, torchvision and OpenCV. 16-bit grey is scaled
    so that its lowest value is black and its highest white, which a warning says once; two pictures
    of one scene may differ in brightness, so save 8 bits where that matters.

    Args:
        name: what messages call it.

    Raises:
        ImageError: it cannot be decoded, or is of floating point or of integers beyond 16 bits,
            which have no defined white.
    """
    try:
        _check_size(picture, name)
        picture.load()
        picture = _upright(picture, name)
        if picture.mode == "I" or picture.mode.startswith("I;16"):
            return _grey16_to_rgb(np.asarray(picture), name)
        if picture.mode in ("F", "LAB"):
            raise ImageError(f"{name}: {_REFUSED[picture.mode]}")
        return _to_rgb(picture)
    except ImageError:
        raise
    except Exception as error:  # as in _open
        raise ImageError(f"{name}: {error or type(error).__name__}") from error


_REFUSED = {
    "F": "floating-point pixels have no defined white; scale them to 0..255 and save them with 8 "
    "bits",
    "LAB": "colours in L*a*b* are not supported; save it as RGB",
}


def _to_rgb(picture: Image.Image) -> np.ndarray:
    if "transparency" in picture.info and picture.mode == "P":
        picture = picture.convert("RGBA")  # Pillow warns of a direct way
    if picture.mode in _STRAIGHT_ALPHA:
        picture = picture.convert(_STRAIGHT_ALPHA[picture.mode])
    if picture.mode != "RGB":
        picture = picture.convert("RGB")
    return np.array(picture)


@functools.cache
def _formats() -> list[str]:
    """What Pillow reads without another program: PostScript would run in Ghostscript."""
    Image.init()
    return [name for name in Image.OPEN if name != "EPS"]


def _decode(data: bytes, name: str) -> Image.Image:
    picture = Image.open(io.BytesIO(data), formats=_formats())
    _check_size(picture, name)
    if picture.format == "PNG":
        picture.verify()  # the checksums of the pixels, which decoding does not look at
        picture = Image.open(io.BytesIO(data), formats=_formats())
    # Not of MPO: a camera's .jpg has its preview in a second frame.
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        _say_once("frames", f"{name}: only the first of its frames or pages is read")
    lower = _lower_bytes(picture, data)
    picture.load()
    return picture if lower is None else _scaled_color(picture, lower, name)


def _lower_bytes(picture: Image.Image, data: bytes) -> Image.Image | None:
    """Of 16-bit colour, of which Pillow reads the upper bytes: a picture of the others.

    They are what it reads where it is told that the bytes are in the other order. None for any
    other picture.
    """
    orders = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    tiles = []
    for codec, extents, offset, args in getattr(picture, "tile", []):
        mode, *others = args if isinstance(args, tuple) else (args,)
        match = re.fullmatch(r"(RGB[AX]?;16)([BLN])", str(mode))
        if match is None:
            return None
        mode = match[1] + orders[match[2]]
        tiles.append((codec, extents, offset, (mode, *others) if others else mode))
    if not tiles:
        return None
    lower = Image.open(io.BytesIO(data), formats=_formats())
    lower.tile = [type(tile)(*new) for tile, new in zip(picture.tile, tiles, strict=True)]
    lower.load()
    return lower


def _scaled_color(upper: Image.Image, lower: Image.Image, name: str) -> Image.Image:
    channels = [
        np.asarray(upper.getchannel(color)).astype(np.uint16) << 8 | lower.getchannel(color)
        for color in "RGB"
    ]
    low = min(int(channel.min()) for channel in channels)
    high = max(int(channel.max()) for channel in channels)
    _say_16_bits(low, high, name)
    scaled = [Image.fromarray(_to_8_bits(channel, low, high)) for channel in channels]
    picture = Image.merge("RGB", scaled)
    method = _turn(upper, name)
    return picture if method is None else picture.transpose(method)


def _check_size(picture: Image.Image, name: str) -> None:
    width, height = picture.size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: it has no pixels ({width}x{height})")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ImageError(f"{name}: {width}x{height} pixels are more than {limit}{_RAISE_LIMIT}")


_RAISE_LIMIT = (
    "; if you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS (for a command: in a module that "
    "IMPORTS names)"
)


_said: set[str] = set()


def _say_once(topic: str, message: str) -> None:
    if topic not in _said:
        _said.add(topic)
        logger.warning("%s (said once)", message)


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that Pillow can read"
    if isinstance(error, Image.DecompressionBombError):
        return f"{error}{_RAISE_LIMIT}"
    return f"damaged or not supported ({str(error) or type(error).__name__})"


def _upright(picture: Image.Image, name: str) -> Image.Image:
    method = _turn(picture, name)
    return picture if method is None else picture.transpose(method)


def _turn(picture: Image.Image, name: str) -> Image.Transpose | None:
    """What turns a picture upright, as its EXIF data say."""
    try:
        return _UPRIGHT.get(picture.getexif().get(_ORIENTATION))
    except Exception as error:  # the pixels are fine all the same
        logger.warning("%s: its EXIF data cannot be read, so it is not turned: %s", name, error)
        return None


def _grey16_to_rgb(values: np.ndarray, name: str) -> np.ndarray:
    """(H, W) integers in 0..65535 as (H, W, 3) uint8."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{name}: 32-bit pixels from {low} to {high} have no defined white; scale them to 8 or "
            "16 bits"
        )
    _say_16_bits(low, high, name)
    return np.repeat(_to_8_bits(values, low, high)[:, :, None], 3, axis=2)


def _say_16_bits(low: int, high: int, name: str) -> None:
    text = f"16-bit pixels are scaled by the picture's own range, here {low}..{high} to 0..255"
    _say_once("16 bits", f"{name}: {text}")


def _to_8_bits(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """256 steps of equal width from ``low`` to ``high``; the upper 8 bits where that is a point."""
    scaled = values.astype(np.int32)
    if low < high:
        scaled -= low
        scaled *= 256
        scaled //= high - low + 1
    else:
        scaled >>= 8
    return scaled.astype(np.uint8)
