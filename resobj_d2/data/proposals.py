"""Precomputed proposals, from the pickles that Detectron2 and Detectron write."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from detectron2.structures import BoxMode

from resobj_d2.process.pickles import read_pickle

__all__ = ["add_proposals"]

_NAMES_OF_DETECTRON = {"indexes": "ids", "scores": "objectness_logits"}


def add_proposals(records: Sequence[dict], path: str) -> None:
    """Add ``proposal_boxes``, their logits and ``proposal_bbox_mode``, best first, to records.

    As Detectron2's ``load_proposals_into_dataset``, which would run what the pickle holds.

    Args:
        records: of one dataset, in Detectron2's standard form.
        path: a pickled dict of ``ids`` of images, ``boxes`` (N, 4), ``objectness_logits`` (N,), and
            perhaps ``bbox_mode``, XYXY by default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds more than arrays and containers, other ones, none for an image, or NaN
            or infinity.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe has no end
        raise ValueError(f"{path} is not a file of proposals")
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not proposals")
    content = {_NAMES_OF_DETECTRON.get(str(key), key): value for key, value in content.items()}
    try:
        ids, boxes, logits = (content[key] for key in ("ids", "boxes", "objectness_logits"))
        positions = {str(identity): i for i, identity in enumerate(ids)}
        mode = BoxMode(content.get("bbox_mode", BoxMode.XYXY_ABS))
        if not len(ids) == len(boxes) == len(logits):
            raise ValueError(f"{len(ids)} ids, {len(boxes)} boxes and {len(logits)} logits")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: proposals are lists 'ids', 'boxes' and 'objectness_logits' of one length, "
            f"and a 'bbox_mode' of Detectron2 ({error})"
        ) from error
    for record in records:
        position = positions.get(str(record["image_id"]))
        if position is None:
            raise ValueError(f"{path} has no proposals for image {record['image_id']!r}")
        own_boxes, own_logits = np.asarray(boxes[position]), np.asarray(logits[position])
        if own_boxes.ndim != 2 or own_boxes.shape != (len(own_logits), 4):
            raise ValueError(
                f"{path}: image {record['image_id']!r} has boxes of shape {own_boxes.shape} and "
                f"logits of shape {own_logits.shape}, not (N, 4) and (N,)"
            )
        if not all(_is_finite(values) for values in (own_boxes, own_logits)):
            raise ValueError(
                f"{path}: image {record['image_id']!r} has boxes or logits that are NaN, infinite "
                "or no numbers"
            )
        order = own_logits.argsort()[::-1]
        record["proposal_boxes"] = own_boxes[order]
        record["proposal_objectness_logits"] = own_logits[order]
        record["proposal_bbox_mode"] = mode


def _is_finite(values: np.ndarray) -> bool:
    return values.dtype.kind in "iuf" and bool(np.isfinite(values).all())
