"""Detections that no metric can judge: refused before COCO's code, whose answers to them differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from resobj_d2.process import counted

__all__ = ["check_detections"]


def check_detections(detections: Sequence[dict], tasks: Sequence[str], dataset_name: str) -> None:
    """Check the entries of a COCO results json.

    Raises:
        ValueError: a score, box or keypoint is no finite number, a box has a negative size, or a
            mask or keypoints that a task needs are missing; the message has the first images.
    """
    where = f"the evaluation on '{dataset_name}'"
    if not detections:
        return
    scores = np.array([item["score"] for item in detections], dtype=np.float64)
    _refuse(~np.isfinite(scores), detections, f"{where}: {{}} with a score of NaN or inf")
    boxes = np.array([item["bbox"] for item in detections], dtype=np.float64).reshape(-1, 4)
    wrong = ~np.isfinite(boxes).all(axis=1)
    _refuse(wrong, detections, f"{where}: {{}} with a box with NaN or inf")
    wrong = (boxes[:, 2:] < 0).any(axis=1)
    _refuse(wrong, detections, f"{where}: {{}} with a box of negative size")
    for task, key in (("segm", "segmentation"), ("keypoints", "keypoints")):
        if task in tasks:
            wrong = np.array([key not in item for item in detections])
            _refuse(wrong, detections, f"{where} of {task}: {{}} without '{key}'")
    if "keypoints" in tasks:
        wrong = np.array([not np.isfinite(item["keypoints"]).all() for item in detections])
        _refuse(wrong, detections, f"{where}: {{}} with keypoints with NaN or inf")


def _refuse(wrong: np.ndarray, detections: Sequence[dict], message: str) -> None:
    if not wrong.any():
        return
    images = dict.fromkeys(detections[row]["image_id"] for row in np.flatnonzero(wrong))
    shown = ", ".join(map(repr, list(images)[:3]))
    raise ValueError(
        f"{message.format(counted(int(wrong.sum()), 'detection'))}, on image {shown}"
        + (", ..." if len(images) > 3 else "")
        + ": the model's weights or its post-processing are broken"
    )
