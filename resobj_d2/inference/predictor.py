"""A detector with the preprocessing of test time, from image file to detections."""

from __future__ import annotations

import os
import struct

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_image_to_rgb, read_image
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image, UnidentifiedImageError
from torch import nn

from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.data.augmentation import build_size_augmentations

__all__ = ["ImageError", "Predictor"]


class ImageError(ValueError):
    """An image file that cannot be used, and why."""


class Predictor:
    """From image file to detections, with every meta-architecture that returns ``instances``.

    Args:
        cfg: a config from :func:`resobj_d2.config.load_config`.
        model: a model in memory, which is put into evaluation mode; by default ``MODEL.WEIGHTS``
            is loaded into the model of ``cfg``.

    Attributes:
        class_names: of classes 0..K-1; empty where ``DATASETS.TEST`` names no dataset with classes.
        num_steps: T of Residual Objectness, 0 without.

    Raises:
        ValueError: there is neither a model nor ``MODEL.WEIGHTS``.
        OSError, CheckpointError: the weights cannot be read or are another model's.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module | None = None) -> None:
        self.model = (_load_model(cfg) if model is None else model).eval()
        self.num_steps: int = getattr(self.model, "num_steps", 0)
        self._format = cfg.INPUT.FORMAT
        self._augmentations = T.AugmentationList(build_size_augmentations(cfg, is_train=False))
        metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else None
        self.class_names: list[str] = list(metadata.get("thing_classes", [])) if metadata else []
        numbers = metadata.get("thing_dataset_id_to_contiguous_id") if metadata else None
        self._category_ids = {number: identity for identity, number in (numbers or {}).items()}

    def read(self, path: str | os.PathLike) -> np.ndarray:
        """An image file as (H, W, 3) uint8 RGB, turned upright as its EXIF data say.

        Raises:
            ImageError: it is missing, broken or no image.
        """
        return self._to_rgb(self._read(path))

    def detect(self, path: str | os.PathLike) -> tuple[np.ndarray, list[Instances]]:
        """The image as :meth:`read` gives it, and its detections.

        Returns:
            Image, and the detections at steps 0..T (one entry without Residual Objectness), on the
            CPU, boxes in pixels of the image. The last entry is what the model returns.

        Raises:
            ImageError: as :meth:`read`.
        """
        image = self._read(path)
        height, width = image.shape[:2]
        augmented = T.AugInput(image)
        try:
            self._augmentations(augmented)
        except ValueError as error:  # an image so narrow that nothing is left of a side
            raise ImageError(f"{width}x{height} pixels cannot be resized: {error}") from error
        pixels = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        batch = [{"image": pixels, "height": height, "width": width}]
        with torch.no_grad():
            steps = self.model.detections_per_step(batch) if self.num_steps else [self.model(batch)]
        return self._to_rgb(image), [_instances(step[0]).to("cpu") for step in steps]

    def categories(self) -> list[dict]:
        """COCO's list of categories; empty without class names."""
        return [
            {"id": self.category_id(number), "name": name}
            for number, name in enumerate(self.class_names)
        ]

    def category_id(self, number: int) -> int:
        """The dataset's id of a class 0..K-1.

        Raises:
            ValueError: the dataset has no such class.
        """
        if not self._category_ids:
            return number
        if number not in self._category_ids:
            raise ValueError(
                f"the model found class {number}, but the dataset of DATASETS.TEST has "
                f"{len(self._category_ids)} classes: the model was made for other classes"
            )
        return self._category_ids[number]

    def _read(self, path: str | os.PathLike) -> np.ndarray:
        try:
            return read_image(os.fspath(path), format=self._format)
        # What Pillow raises on broken files of one format or another.
        except (
            OSError,
            SyntaxError,
            ValueError,
            struct.error,
            Image.DecompressionBombError,
        ) as error:
            reason = error
            if isinstance(error, FileNotFoundError):
                reason = "there is no such file"
            elif isinstance(error, UnidentifiedImageError):
                reason = "this is no image in a format that Pillow can read"
            raise ImageError(f"{os.fspath(path)}: {reason}") from error

    def _to_rgb(self, image: np.ndarray) -> np.ndarray:
        rgb = convert_image_to_rgb(image, self._format)
        return np.ascontiguousarray(rgb.clip(0, 255).astype(np.uint8))


def _load_model(cfg: CfgNode) -> nn.Module:
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "MODEL.WEIGHTS is empty, so there is no trained model to predict with: "
            "give MODEL.WEIGHTS path/to/model_final.pth"
        )
    model = build_model(cfg)
    ResObjCheckpointer(model, strict=True).load(cfg.MODEL.WEIGHTS)
    return model


def _instances(output: dict) -> Instances:
    if "instances" not in output:
        raise TypeError(f"the model returns no 'instances' but {sorted(output)}: it is no detector")
    return output["instances"]
