"""The dataset mapper of training and evaluation, and one that says which image an error is of."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode, Instances

from .augmentation import build_box_augmentations, build_size_augmentations
from .pictures import ImageError, read_label_map, read_picture, rgb_to_format

__all__ = [
    "ImageErrorMapper",
    "PictureMapper",
    "build_test_mapper",
    "build_train_mapper",
    "more_than_boxes",
]


class PictureMapper(DatasetMapper):
    """Detectron2's ``DatasetMapper``, whose pictures :mod:`.pictures` reads.

    Its augmentations see the boxes too, where Detectron2 shows them the image alone. For the rest
    it does what Detectron2's does with the same arguments, or with the same config and
    ``is_train``.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        """A record of Detectron2's standard form to the input of a detector.

        Raises:
            ImageError: a picture cannot be read or augmented.
            ValueError: its size or its annotations are not what the record says.
        """
        record = copy.deepcopy(dataset_dict)
        image = rgb_to_format(read_picture(record["file_name"]), self.image_format)
        detection_utils.check_image_size(record, image)
        labels = record.pop("sem_seg_file_name", None)
        annotations = record.pop("annotations", None) if self.is_train else None
        aug_input = T.AugInput(
            image,
            boxes=_boxes(annotations or []),
            sem_seg=None if labels is None else _resizable(read_label_map(labels)),
        )
        transforms = self._augment(aug_input, record)
        image = aug_input.image
        record["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if aug_input.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype("long"))
        if self.proposal_topk is not None:
            detection_utils.transform_proposals(
                record, image.shape[:2], transforms, proposal_topk=self.proposal_topk
            )
        record.pop("annotations", None)
        if annotations is not None:
            record["instances"] = self._instances(annotations, transforms, image.shape[:2])
        return record

    def _augment(self, aug_input: T.AugInput, record: dict) -> T.TransformList:
        height, width = aug_input.image.shape[:2]
        try:
            return self.augmentations(aug_input)
        except (ValueError, AssertionError) as error:  # so narrow that nothing is left of a side
            raise ImageError(
                f"{record['file_name']}: {width}x{height} pixels cannot be resized or augmented: "
                f"{error}"
            ) from error

    def _instances(
        self, annotations: list[dict], transforms: T.TransformList, size: tuple[int, int]
    ) -> Instances:
        unused = {"segmentation"} if not self.use_instance_mask else set()
        if not self.use_keypoint:
            unused.add("keypoints")
        moved = [
            detection_utils.transform_instance_annotations(
                {key: value for key, value in annotation.items() if key not in unused},
                transforms,
                size,
                keypoint_hflip_indices=self.keypoint_hflip_indices,
            )
            for annotation in annotations
            if not annotation.get("iscrowd", 0)
        ]
        instances = detection_utils.annotations_to_instances(
            moved, size, mask_format=self.instance_mask_format
        )
        if self.recompute_boxes:  # a crop may have left a smaller part of a mask than of its box
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return detection_utils.filter_empty_instances(instances)


def _resizable(labels: np.ndarray) -> np.ndarray:
    """Detectron2's transforms take bytes and floating point; the latter hold 16 bits exactly."""
    return labels if labels.dtype == np.uint8 else labels.astype(np.float32)


def _boxes(annotations: Sequence[dict]) -> np.ndarray:
    """(M, 4) XYXY in pixels, of what is not a crowd."""
    boxes = [
        BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
        for a in annotations
        if not a.get("iscrowd", 0)
    ]
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def more_than_boxes(cfg) -> list[str]:
    """The keys by which a model learns what this package's changes of images leave behind."""
    keys = {
        "MODEL.MASK_ON": cfg.MODEL.MASK_ON,
        "MODEL.KEYPOINT_ON": cfg.MODEL.KEYPOINT_ON,
        "MODEL.LOAD_PROPOSALS": cfg.MODEL.LOAD_PROPOSALS,
    }
    return [key for key, value in keys.items() if value]


def build_train_mapper(cfg) -> PictureMapper:
    """The mapper of training, with the augmentations and sizes of ``cfg.INPUT``.

    Raises:
        ValueError: augmentations that Detectron2 lacks together with masks, keypoints, proposals
            or INPUT.CROP.
    """
    own = build_box_augmentations(cfg)
    if not (own or cfg.INPUT.FIXED_SIZE or cfg.INPUT.SCALE_JITTER):
        return PictureMapper(cfg, True)
    obstacles = more_than_boxes(cfg) + ["INPUT.CROP.ENABLED"] * cfg.INPUT.CROP.ENABLED
    if obstacles:
        raise ValueError(
            "INPUT.PHOTOMETRIC, EXPAND, IOU_CROP, FIXED_SIZE and SCALE_JITTER are for box "
            f"detectors and cannot be combined with {obstacles}"
        )
    stock = build_size_augmentations(cfg, is_train=True)
    return PictureMapper(is_train=True, augmentations=[*own, *stock], image_format=cfg.INPUT.FORMAT)


def build_test_mapper(cfg) -> PictureMapper:
    """The mapper of evaluation, with the image size of ``cfg.INPUT``."""
    return PictureMapper(cfg, False, augmentations=build_size_augmentations(cfg, is_train=False))


class ImageErrorMapper:
    """Wraps a Detectron2 dataset mapper and says which image an error is of.

    Args:
        mapper: the mapper to call.
    """

    def __init__(self, mapper: Callable[[dict], dict | None]):
        self.mapper = mapper

    def __call__(self, record: dict) -> dict | None:
        """Map one record of Detectron2's standard form.

        Raises:
            OSError: the image is missing, broken, not an image, or not what its record says. The
                message names the dataset (where the record knows it), the image's id and its
                absolute path.
        """
        try:
            return self.mapper(record)
        except (OSError, ValueError, AssertionError) as error:
            path = os.path.abspath(record["file_name"])
            name = record.get("dataset_name")
            owner = f"dataset '{name}'" if name else "a dataset"
            reason = str(error).removeprefix(f"{record['file_name']}: ") or type(error).__name__
            unreadable = isinstance(error, (OSError, ImageError))
            problem = f"cannot be {'read' if unreadable else 'used'} ({reason})"
            if not os.path.exists(path):
                problem = "does not exist"
            raise OSError(
                f"{owner}: image {record.get('image_id')!r}, {path}, {problem}"
            ) from error
