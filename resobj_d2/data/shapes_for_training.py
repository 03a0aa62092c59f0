"""Masks and keypoints of training data: there where they are trained, left out elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from resobj_d2.process import agreeing, counted

from .catalog import dataset_record
from .notes import KINDS

__all__ = ["fit_shapes"]

logger = logging.getLogger(__name__)


def fit_shapes(
    cfg, records: Sequence[dict], names: Sequence[str], *, config_key: str = "DATASETS.TRAIN"
) -> None:
    """Change records of Detectron2's standard form, in place, to what the model trains.

    Masks go where no masks are trained. Where they are, an object without a usable one is left out
    with a warning, as Detectron2's reader does. An object without keypoints gets invisible ones.

    Args:
        cfg: the config.
        records: fresh ones; their annotations are changed.
        names: the datasets that they are from.
        config_key: the key of the names, for messages.

    Raises:
        ValueError: no object has what is trained, or not in the form that the config asks for.
    """
    shown = f"{config_key} ({', '.join(names)})"
    if not cfg.MODEL.MASK_ON:
        for item in _annotations(records):
            item.pop("segmentation", None)
    else:
        _say("masks", names)
        _fit_masks(cfg.INPUT.MASK_FORMAT, records, shown)
    if cfg.MODEL.KEYPOINT_ON:
        _say("keypoints", names)
        _fit_keypoints(cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, records, shown)


def _annotations(records: Sequence[dict]) -> Iterator[dict]:
    return (item for record in records for item in record.get("annotations", ()))


def _objects(records: Sequence[dict]) -> Iterator[dict]:
    return (item for item in _annotations(records) if item.get("iscrowd", 0) == 0)


def _say(use: str, names: Sequence[str]) -> None:
    from detectron2.data import MetadataCatalog

    for name in names:
        if MetadataCatalog.get(name).get("record") is not None:
            for note in dataset_record(name).notes:
                if KINDS[note.kind].needed_for == use:
                    logger.warning(note.message)


def _fit_masks(mask_format: str, records: Sequence[dict], shown: str) -> None:
    total = without = encoded = 0
    for item in _objects(records):
        total += 1
        without += "segmentation" not in item
        encoded += isinstance(item.get("segmentation"), dict)
    if without and without == total:
        raise ValueError(
            f"MODEL.MASK_ON is True, but none of the {counted(total, 'object')} of {shown} has a "
            "mask"
        )
    if encoded and mask_format == "polygon":
        raise ValueError(
            f"{encoded} masks of {shown} are run-length encoded: set INPUT.MASK_FORMAT bitmask"
        )
    if without:
        logger.warning(
            "%d of %s of %s %s no usable mask and %s left out of the "
            "training, since MODEL.MASK_ON trains one for each",
            *(without, counted(total, "object"), shown),
            *(agreeing(without, "have"), agreeing(without, "are")),
        )
        for record in records:
            if "annotations" in record:
                record["annotations"] = [
                    item
                    for item in record["annotations"]
                    if "segmentation" in item or item.get("iscrowd", 0)
                ]


def _fit_keypoints(count: int, records: Sequence[dict], shown: str) -> None:
    found = False
    for item in _objects(records):
        points = item.get("keypoints")
        if points and len(points) != 3 * count:
            raise ValueError(
                f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {count}, but an object of "
                f"{shown} has {len(points) // 3} keypoints: set it to that"
            )
        found |= bool(points)
        if not points:
            item["keypoints"] = [0.0] * (3 * count)
    if not found:
        raise ValueError(f"MODEL.KEYPOINT_ON is True, but no object of {shown} has keypoints")
