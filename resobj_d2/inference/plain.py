"""Detections as plain Python objects."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from detectron2.structures import Instances
from pycocotools import mask as coco_mask
from torch import Tensor

__all__ = ["instances_to_dicts"]

_FACTOR = "_score"  # ends the names of the fields that hold the parts of a score


def instances_to_dicts(detections: Instances, class_name: Callable[[int], str]) -> list[dict]:
    """One dict for each detection; see :meth:`.predictor.Predictor.to_dicts`."""
    fields = detections.get_fields()
    factors = {
        name.removesuffix(_FACTOR): value.tolist()
        for name, value in fields.items()
        if name.endswith(_FACTOR)
    }
    columns = zip(
        detections.pred_boxes.tensor.tolist(),
        detections.scores.tolist(),
        detections.pred_classes.tolist(),
        strict=True,
    )
    result = [
        {
            "box": box,
            "score": score,
            "class_index": number,
            "class_name": class_name(number),
            "factors": {name: values[i] for name, values in factors.items()},
        }
        for i, (box, score, number) in enumerate(columns)
    ]
    if "pred_masks" in fields:
        for item, mask in zip(result, fields["pred_masks"], strict=True):
            item["mask"] = _run_lengths(mask)
    if "pred_keypoints" in fields:
        for item, points in zip(result, fields["pred_keypoints"].tolist(), strict=True):
            item["keypoints"] = points
    return result


def _run_lengths(mask: Tensor) -> dict:
    """An (H, W) mask as COCO's compressed run lengths, which json can write."""
    encoded = coco_mask.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
    return {"size": list(map(int, encoded["size"])), "counts": encoded["counts"].decode("ascii")}
