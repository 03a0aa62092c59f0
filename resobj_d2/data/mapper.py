"""Dataset mappers: one whose augmentations see the boxes, one that explains unreadable images."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from .augmentation import build_box_augmentations, build_size_augmentations

__all__ = [
    "BoxMapper",
    "ImageErrorMapper",
    "build_test_mapper",
    "build_train_mapper",
    "more_than_boxes",
]


class BoxMapper:
    """Reads, augments and boxes training images; its augmentations see the boxes.

    Detectron2's ``DatasetMapper`` shows them the image alone. Masks and keypoints are left out.

    Args:
        augmentations: in the order in which they act.
        image_format: "BGR" or "RGB", as ``cfg.INPUT.FORMAT``.
    """

    def __init__(self, *, augmentations: Sequence[T.Augmentation], image_format: str) -> None:
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format

    def __call__(self, record: dict) -> dict:
        """A record of Detectron2's standard form to the input of a detector."""
        record = copy.deepcopy(record)
        image = detection_utils.read_image(record["file_name"], format=self.image_format)
        detection_utils.check_image_size(record, image)
        annotations = [a for a in record.pop("annotations", []) if not a.get("iscrowd", 0)]
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        aug_input = T.AugInput(image, boxes=np.asarray(boxes, dtype=np.float64).reshape(-1, 4))
        transforms = self.augmentations(aug_input)
        image = aug_input.image
        record["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        kept = ("bbox", "bbox_mode", "category_id")
        moved = [
            detection_utils.transform_instance_annotations(
                {key: annotation[key] for key in kept}, transforms, image.shape[:2]
            )
            for annotation in annotations
        ]
        instances = detection_utils.annotations_to_instances(moved, image.shape[:2])
        record["instances"] = detection_utils.filter_empty_instances(instances)
        return record


def more_than_boxes(cfg) -> list[str]:
    """The keys by which a model learns what this package's changes of images leave behind."""
    keys = {
        "MODEL.MASK_ON": cfg.MODEL.MASK_ON,
        "MODEL.KEYPOINT_ON": cfg.MODEL.KEYPOINT_ON,
        "MODEL.LOAD_PROPOSALS": cfg.MODEL.LOAD_PROPOSALS,
    }
    return [key for key, value in keys.items() if value]


def build_train_mapper(cfg) -> Callable[[dict], dict | None]:
    """Detectron2's mapper, or :class:`BoxMapper` where ``cfg.INPUT`` asks for what that lacks.

    Raises:
        ValueError: such augmentations together with masks, keypoints, proposals or INPUT.CROP.
    """
    own = build_box_augmentations(cfg)
    if not (own or cfg.INPUT.FIXED_SIZE or cfg.INPUT.SCALE_JITTER):
        return DatasetMapper(cfg, True)
    obstacles = more_than_boxes(cfg) + ["INPUT.CROP.ENABLED"] * cfg.INPUT.CROP.ENABLED
    if obstacles:
        raise ValueError(
            "INPUT.PHOTOMETRIC, EXPAND, IOU_CROP, FIXED_SIZE and SCALE_JITTER are for box "
            f"detectors and cannot be combined with {obstacles}"
        )
    stock = build_size_augmentations(cfg, is_train=True)
    return BoxMapper(augmentations=[*own, *stock], image_format=cfg.INPUT.FORMAT)


def build_test_mapper(cfg) -> DatasetMapper:
    """Detectron2's mapper with the image size of ``cfg.INPUT``."""
    return DatasetMapper(cfg, False, augmentations=build_size_augmentations(cfg, is_train=False))


class ImageErrorMapper:
    """Wraps a Detectron2 dataset mapper and explains images that cannot be read.

    Args:
        mapper: the mapper to call, for instance Detectron2's ``DatasetMapper``.
    """

    def __init__(self, mapper: Callable[[dict], dict | None]):
        self.mapper = mapper

    def __call__(self, record: dict) -> dict | None:
        """Map one record of Detectron2's standard form.

        Raises:
            OSError: the image is missing, broken or not an image. The message names the data set
                (where the record knows it), the image's id and its absolute path.
        """
        try:
            return self.mapper(record)
        except OSError as error:
            path = os.path.abspath(record["file_name"])
            name = record.get("dataset_name")
            owner = f"dataset '{name}'" if name else "a dataset"
            missing = not os.path.exists(path)
            problem = "does not exist" if missing else f"cannot be read ({error})"
            raise OSError(
                f"{owner}: image {record.get('image_id')!r}, {path}, {problem}"
            ) from error
