"""What a predictor takes: files, arrays, Pillow images and tensors, all to one kind of array."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from PIL import Image

from resobj_d2.data.pictures import ImageError, picture_to_rgb, read_picture

__all__ = ["SingleImage", "in_batches", "is_single", "to_rgb"]

SingleImage = str | os.PathLike | np.ndarray | Image.Image | torch.Tensor

_ORDERS = ("RGB", "BGR")
_WHICH_ORDER = (
    'say channels="RGB" (Pillow, imageio, torchvision) or channels="BGR" (cv2.imread); a wrong '
    "order is not an error that anyone would see, only worse detections"
)


def is_single(images: object) -> bool:
    """Whether it is one image; otherwise an iterable of them.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(images, SingleImage):
        return True
    if isinstance(images, Iterable) and not isinstance(images, (bytes, dict)):
        return False
    raise TypeError(
        f"expected a path, an array, a Pillow image, a tensor or a list of them, got "
        f"{type(images).__name__}"
    )


def in_batches(images: Iterable, size: int) -> Iterator[list]:
    """Lists of ``size`` images; the last may be shorter."""
    iterator = iter(images)
    while batch := list(islice(iterator, size)):
        yield batch


def to_rgb(image: SingleImage, *, channels: str | None, name: str = "the image") -> np.ndarray:
    """One image as (H, W, 3) uint8 RGB.

    Args:
        image: a path or a Pillow image, which know the order of their channels; an array of shape
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a tensor of shape (H, W), (1, H, W),
            (3, H, W) or (4, H, W), of uint8. A fourth channel is alpha and is left out.
        channels: "RGB" or "BGR", required for arrays and tensors in colour.
        name: what messages call an image that has no path.

    Raises:
        ImageError: it cannot be read; its type, shape or order of channels is wrong or not known.
        TypeError: it is no image at all.
    """
    if channels is not None and channels not in _ORDERS:
        raise ImageError(f'channels must be "RGB" or "BGR", got {channels!r}')
    if isinstance(image, (str, os.PathLike)):
        return read_picture(image)
    if isinstance(image, Image.Image):
        return picture_to_rgb(image, name=name)
    if isinstance(image, torch.Tensor):
        array = _hwc(image, name)
    elif isinstance(image, np.ndarray):
        array = image
    else:
        raise TypeError(
            f"{name} is a {type(image).__name__}, not a path, an array, a Pillow image or a tensor"
        )
    return _array_to_rgb(array, channels, name)


def _hwc(tensor: torch.Tensor, name: str) -> np.ndarray:
    array = tensor.detach().cpu().numpy()
    if array.ndim == 2:
        return array
    if array.ndim != 3 or array.shape[0] not in (1, 3, 4):
        raise ImageError(
            f"{name} is a tensor of shape {array.shape}, expected (3, height, width) as "
            "torchvision.io.read_image gives it; hand over an array of (height, width, 3) with "
            ".numpy(), and several images as a list"
        )
    return array.transpose(1, 2, 0)


def _array_to_rgb(array: np.ndarray, channels: str | None, name: str) -> np.ndarray:
    if array.dtype != np.uint8:
        raise ImageError(f"{name} is of {array.dtype}, expected uint8 (0..255){_dtype_hint(array)}")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        hint = ""
        if array.ndim == 4:
            hint = "; hand over several images as a list: list(images)"
        elif array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; move the channels to the end: image.transpose(1, 2, 0)"
        raise ImageError(
            f"{name} has shape {array.shape}, expected (height, width, 3), (height, width) for "
            f"grey or (height, width, 4) with alpha{hint}"
        )
    if not array.size:
        raise ImageError(f"{name} has shape {array.shape} and no pixels")
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    if channels is None:
        raise ImageError(f"{name} is an array, which does not tell red from blue: {_WHICH_ORDER}")
    array = array[:, :, :3]
    return np.ascontiguousarray(array[:, :, ::-1] if channels == "BGR" else array)


def _dtype_hint(array: np.ndarray) -> str:
    if array.dtype.kind == "f":
        return ": of values in 0..1 make (255 * image).round().astype('uint8')"
    if array.dtype == np.uint16:
        return ": of 16 bits make (image >> 8).astype('uint8')"
    if array.dtype == bool:
        return ": of a mask make 255 * image.astype('uint8')"
    return ": of values in 0..255 make image.astype('uint8')"
