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
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import IO

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from .picture_pixels import ImageError, say_once, to_rgb

__all__ = ["ImageError", "picture_to_rgb", "read_label_map", "read_picture", "rgb_to_format"]

logger = logging.getLogger(__name__)

_ORIENTATION = 0x0112  # EXIF tag
# How the rows and columns of the stored pixels have to be turned, by the definition of the tag.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}
_NETWORK = ("http", "https", "ftp")  # which PathManager would download
# Their decoders hold several copies: at Pillow's limit they take more than 2 GB.
_DECODED_IN_COPIES = ("WEBP", "JPEG2000")
MAX_SIDE = 2**18  # pixels; Pillow's memory grows with the number of rows as well
MAX_PNG_CHUNKS = 500_000


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
    picture, lower = _open(name)
    turn = _turn(picture, name)
    pixels = _pixels(picture, lower, name)
    del picture, lower  # before a second array of this size is made
    return np.ascontiguousarray(turn(pixels))


def read_label_map(path: str | os.PathLike) -> np.ndarray:
    """Read the labels of pixels, as of semantic segmentation: (H, W) integers as they are stored.

    Grey values, or the numbers of a palette's entries: not their colours.

    Raises:
        ImageError: as :func:`read_picture`; or it has colours.
    """
    name = os.fspath(path)
    picture, _ = _open(name)
    if picture.mode not in ("1", "L", "P", "I") and not picture.mode.startswith("I;16"):
        raise ImageError(f"{name}: labels must be grey or a palette's, not {picture.mode} pixels")
    labels = np.asarray(picture)
    labels = labels.astype(np.uint8 if labels.dtype.itemsize == 1 else np.int32)
    return np.ascontiguousarray(_turn(picture, name)(labels))


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


def _open(name: str) -> tuple[Image.Image, Image.Image | None]:
    """The decoded picture of a file, and of 16-bit colour the lower bytes."""
    if "://" in name and name.partition("://")[0].lower() in _NETWORK:
        raise ImageError(f"{name}: pictures are read from the disk alone: download it first")
    try:
        path = PathManager.get_local_path(name)
        if not os.path.exists(path):
            raise ImageError(f"{name}: there is no such file")
        if not os.path.isfile(path) and not os.path.isdir(path):  # a pipe or device has no end
            raise ImageError(f"{name}: it is not a file")
        limit = 4 * (Image.MAX_IMAGE_PIXELS or sys.maxsize) + 2**20
        if os.path.isfile(path) and os.path.getsize(path) > limit:
            raise ImageError(f"{name}: a file of more than {limit} bytes{_RAISE_LIMIT}")
        with open(path, "rb") as file:
            return _decoded(file, name)
    except OSError as error:
        raise ImageError(f"{name}: {error.strerror or error}") from error


def _decoded(file: IO[bytes], name: str) -> tuple[Image.Image, Image.Image | None]:
    try:
        return _decode(file, name)
    except ImageError:
        raise
    # Pillow's readers raise almost anything on a broken file, depending on the format: OSError,
    # SyntaxError, struct.error, IndexError, TypeError, ...
    except Exception as error:
        empty = os.fstat(file.fileno()).st_size == 0
        reason = "the file is empty" if empty else _reason(error)
        raise ImageError(f"{name}: {reason}") from error


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
    except ImageError:
        raise
    except Exception as error:  # as in _decoded
        raise ImageError(f"{name}: {error or type(error).__name__}") from error
    return np.ascontiguousarray(_turn(picture, name)(_pixels(picture, None, name)))


def _pixels(picture: Image.Image, lower: Image.Image | None, name: str) -> np.ndarray:
    try:
        return to_rgb(picture, lower, name)
    except ImageError:
        raise
    except Exception as error:  # Pillow has no way from this mode
        raise ImageError(f"{name}: {error or type(error).__name__}") from error


@functools.cache
def _formats() -> list[str]:
    """What Pillow reads without another program: PostScript would run in Ghostscript."""
    Image.init()
    return [name for name in Image.OPEN if name != "EPS"]


def _decode(file: IO[bytes], name: str) -> tuple[Image.Image, Image.Image | None]:
    picture = Image.open(file, formats=_formats())
    _check_size(picture, name)
    if picture.format == "PNG":
        _check_chunks(file, name)
        picture.verify()  # the checksums of the pixels, which decoding does not look at
        file.seek(0)
        picture = Image.open(file, formats=_formats())
    # Not of MPO: a camera's .jpg has its preview in a second frame.
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        say_once("frames", f"{name}: only the first of its frames or pages is read")
    tiles = _tiles_of_lower_bytes(picture)
    picture.load()
    if not tiles:
        return picture, None
    file.seek(0)
    lower = Image.open(file, formats=_formats())
    lower.tile = tiles
    lower.load()
    return picture, lower


def _check_chunks(file: IO[bytes], name: str) -> None:
    """Pillow takes its time for each chunk of a PNG, however small; real ones have thousands."""
    position = file.tell()
    file.seek(8)
    count = 0
    while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
        count += 1
        if count > MAX_PNG_CHUNKS:
            raise ImageError(f"{name}: a PNG of more than {MAX_PNG_CHUNKS} chunks")
    file.seek(position)


def _tiles_of_lower_bytes(picture: Image.Image) -> list:
    """How to read the lower bytes of 16-bit colour, of which Pillow reads the upper ones.

    They are what it reads where it is told that the bytes are in the other order. Empty for any
    other picture.
    """
    orders = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    tiles = []
    for tile in getattr(picture, "tile", []):
        codec, extents, offset, args = tile
        mode, *others = args if isinstance(args, tuple) else (args,)
        match = re.fullmatch(r"(RGB[AX]?;16)([BLN])", str(mode))
        if match is None:
            return []
        mode = match[1] + orders[match[2]]
        tiles.append(type(tile)(codec, extents, offset, (mode, *others) if others else mode))
    return tiles


def _check_size(picture: Image.Image, name: str) -> None:
    width, height = picture.size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: it has no pixels ({width}x{height})")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.format in _DECODED_IN_COPIES:
        limit //= 2
    if limit is not None and width * height > limit:
        raise ImageError(f"{name}: {width}x{height} pixels are more than {limit}{_RAISE_LIMIT}")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{name}: {width}x{height} pixels have a side of more than {MAX_SIDE}")


_RAISE_LIMIT = (
    "; if you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS (for a command: in a module that "
    "IMPORTS names)"
)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that Pillow can read"
    if isinstance(error, Image.DecompressionBombError):
        return f"{error}{_RAISE_LIMIT}"
    return f"damaged or not supported ({str(error) or type(error).__name__})"


def _turn(picture: Image.Image, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """What turns its pixels upright, as its EXIF data say."""
    try:
        orientation = picture.getexif().get(_ORIENTATION)
        return _UPRIGHT.get(orientation, lambda x: x)
    except Exception as error:  # the pixels are fine all the same
        logger.warning("%s: its EXIF data cannot be read, so it is not turned: %s", name, error)
        return lambda x: x
