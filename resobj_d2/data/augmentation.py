"""SSD's augmentations as Detectron2 augmentations (Liu et al. 2016, "SSD", section 2.2).

How they choose is torchvision's; how they act on images and boxes is Detectron2's. They draw from
torch's random generator, which Detectron2 seeds in every worker.
"""

from __future__ import annotations

import numpy as np
import torch
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, NoOpTransform, PadTransform, Transform
from torchvision import tv_tensors
from torchvision.transforms import v2

__all__ = [
    "ExpandCanvas",
    "IoUCrop",
    "PhotometricDistortion",
    "build_box_augmentations",
    "build_size_augmentations",
]


class _Distort(Transform):
    """Applies a torchvision distortion with parameters already drawn."""

    def __init__(self, distort: v2.RandomPhotometricDistort, params: dict, *, bgr: bool) -> None:
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        rgb = img[..., ::-1] if self.bgr else img
        x = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))
        x = self.distort.transform(x, self.params)
        out = x.numpy().transpose(1, 2, 0)
        return np.ascontiguousarray(out[..., ::-1] if self.bgr else out)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def inverse(self) -> Transform:
        raise ValueError("a photometric distortion cannot be undone")


class PhotometricDistortion(T.Augmentation):
    """Random brightness, contrast, saturation, hue and order of channels, each half the time.

    Args:
        image_format: ``cfg.INPUT.FORMAT``; hue and saturation need to know red from blue.
    """

    def __init__(self, *, image_format: str) -> None:
        super().__init__()
        if image_format not in ("BGR", "RGB"):
            raise ValueError(f"PHOTOMETRIC needs INPUT.FORMAT BGR or RGB, got {image_format!r}")
        self._init(locals())
        self.distort = v2.RandomPhotometricDistort()

    def get_transform(self, image: np.ndarray) -> Transform:
        """image: (H, W, 3) uint8."""
        params = self.distort.make_params([torch.empty(3, *image.shape[:2])])
        return _Distort(self.distort, params, bgr=self.image_format == "BGR")


class ExpandCanvas(T.Augmentation):
    """Half the time puts the image on a larger canvas, so that its objects become smaller.

    Args:
        max_ratio: the canvas has up to so many times the image's width and height.
        fill: colour of the canvas, per channel of the image.
    """

    def __init__(self, *, max_ratio: float = 4.0, fill: tuple[float, ...]) -> None:
        super().__init__()
        if max_ratio < 1:
            raise ValueError(f"INPUT.EXPAND must be at least 1, got {max_ratio}")
        self._init(locals())
        self.expand = v2.RandomZoomOut(side_range=(1.0, max_ratio))

    def get_transform(self, image: np.ndarray) -> Transform:
        if torch.rand(1) >= self.expand.p:
            return NoOpTransform()
        size = torch.empty(3, *image.shape[:2])
        left, top, right, bottom = self.expand.make_params([size])["padding"]
        return _ColorPad(left, top, right, bottom, self.fill)


class _ColorPad(PadTransform):
    """``PadTransform`` with a colour instead of one number."""

    def __init__(self, left: int, top: int, right: int, bottom: int, fill: tuple) -> None:
        super().__init__(left, top, right, bottom)
        self.fill = fill

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        height, width = img.shape[:2]
        shape = (height + self.y0 + self.y1, width + self.x0 + self.x1, *img.shape[2:])
        out = np.empty(shape, dtype=img.dtype)
        out[:] = np.asarray(self.fill).astype(img.dtype)
        out[self.y0 : self.y0 + height, self.x0 : self.x0 + width] = img
        return out


class IoUCrop(T.Augmentation):
    """Crops so that some box keeps an IoU with the crop of at least a random bound, or not at all.

    Boxes whose centre lies outside the crop get no area, which
    ``detection_utils.filter_empty_instances`` then removes. Pictures of less than four pixels
    in width or height stay whole.
    """

    def __init__(self) -> None:
        super().__init__()
        self.crop = v2.RandomIoUCrop()

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> Transform:
        """image: (H, W, C); boxes: (M, 4) XYXY in pixels."""
        height, width = image.shape[:2]
        # Of a picture this small the smallest crop would have no pixel.
        if not len(boxes) or int(min(height, width) * self.crop.min_scale) < 1:
            return NoOpTransform()
        boxes = tv_tensors.BoundingBoxes(
            torch.as_tensor(np.asarray(boxes, dtype=np.float32)),
            format="XYXY",
            canvas_size=(height, width),
        )
        params = self.crop.make_params([torch.empty(3, height, width), boxes])
        if not params:
            return NoOpTransform()
        x, y = params["left"], params["top"]
        return _CentreCrop(x, y, params["width"], params["height"], width, height)


class _CentreCrop(CropTransform):
    """``CropTransform`` that collapses boxes whose centre is cut away."""

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        box = np.asarray(box, dtype=float)
        centre = (box[:, :2] + box[:, 2:]) / 2
        low = np.array([self.x0, self.y0])
        inside = ((low < centre) & (centre < low + [self.w, self.h])).all(axis=1)
        return np.where(inside[:, None], super().apply_box(box), 0.0)


def build_box_augmentations(cfg) -> list[T.Augmentation]:
    """The augmentations of a training config that need boxes or colours, in SSD's order."""
    node = cfg.INPUT
    augmentations: list[T.Augmentation] = []
    if node.PHOTOMETRIC:
        augmentations.append(PhotometricDistortion(image_format=node.FORMAT))
    if node.EXPAND != 1.0:
        fill = tuple(cfg.MODEL.PIXEL_MEAN)
        augmentations.append(ExpandCanvas(max_ratio=node.EXPAND, fill=fill))
    if node.IOU_CROP:
        augmentations.append(IoUCrop())
    return augmentations


def build_size_augmentations(cfg, *, is_train: bool) -> list[T.Augmentation]:
    """Detectron2's augmentations, with what ``cfg.INPUT`` asks for in place of their resizing.

    ``FIXED_SIZE`` stretches images to one size; ``SCALE_JITTER``, in training, scales them at
    random, then crops or pads them to a square.

    Raises:
        ValueError: FIXED_SIZE is neither empty nor two positive numbers; SCALE_JITTER is neither
            empty nor two ascending positive numbers; both are given.
    """
    size, jitter = tuple(cfg.INPUT.FIXED_SIZE), tuple(cfg.INPUT.SCALE_JITTER)
    if size and (len(size) != 2 or not all(isinstance(x, int) and x > 0 for x in size)):
        raise ValueError(f"INPUT.FIXED_SIZE must be [height, width] or [], got {list(size)}")
    if jitter and (len(jitter) != 2 or not 0 < jitter[0] <= jitter[1]):
        raise ValueError(f"INPUT.SCALE_JITTER must be [low, high] or [], got {list(jitter)}")
    if size and jitter:
        raise ValueError("INPUT.FIXED_SIZE and INPUT.SCALE_JITTER exclude each other")
    resizing: list[T.Augmentation] = []
    if size:
        resizing = [T.Resize(size)]
    elif jitter and is_train:
        side = cfg.INPUT.MAX_SIZE_TRAIN
        resizing = [T.ResizeScale(*jitter, side, side), T.FixedSizeCrop((side, side))]
    augmentations = detection_utils.build_augmentation(cfg, is_train)
    if not resizing:
        return augmentations
    others = [a for a in augmentations if not isinstance(a, T.ResizeShortestEdge)]
    return resizing + others
