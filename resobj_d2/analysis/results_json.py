"""Detections of any toolkit, from a COCO results json."""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resobj_d2.data.record import Record
from resobj_d2.data.values import fits_float

__all__ = ["Results", "check_entries", "read_entries", "read_results"]

_KEYS = ("image_id", "category_id", "bbox", "score")
_SHOWN = 5  # ids in a message


@dataclass(frozen=True, kw_only=True)
class Results:
    """D detections in the order of the file.

    Attributes:
        image_index: (D,) int64, rows of the record's images.
        classes: (D,) int64, class numbers.
        boxes: (D, 4) float64 corners.
        scores: (D,) float64.
    """

    image_index: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


def read_results(path: str | os.PathLike, record: Record) -> Results:
    """Read the detections of a record's images.

    Raises:
        ValueError: it is no list of detections, or of other images or classes.
        OSError: it cannot be read.
    """
    content = read_entries(path)
    check_entries(content, record, os.fspath(path))
    images = {identity: row for row, identity in enumerate(record.images.ids)}
    classes = record.class_numbers
    boxes = np.array([item["bbox"] for item in content], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Results(
        image_index=np.array([images[x["image_id"]] for x in content], dtype=np.int64),
        classes=np.array([classes[x["category_id"]] for x in content], dtype=np.int64),
        boxes=boxes,
        scores=np.array([x["score"] for x in content], dtype=np.float64),
    )


def read_entries(path: str | os.PathLike) -> list:
    """The list that a COCO results json is, not checked any further.

    Raises:
        ValueError: it is not valid json, or not a list.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no valid json: {error}") from error
    if not isinstance(content, list):
        raise ValueError(
            f"{path} holds no list: a COCO results json is a list of detections, each with "
            f"{', '.join(_KEYS)}"
        )
    return content


def check_entries(content: Sequence, record: Record, where: str) -> None:
    """Refuse entries that are no detections, or not of this dataset.

    Raises:
        ValueError: the message begins with ``where``, as all of this module.
    """
    for position, item in enumerate(content):
        _check(item, f"{where}: detection {position}")
    _refuse_unknown(where, "image_id", content, record.images.ids, record)
    _refuse_unknown(where, "category_id", content, list(record.class_numbers), record)


def _check(item: object, where: str) -> None:
    if not isinstance(item, dict) or any(key not in item for key in _KEYS):
        raise ValueError(f"{where} needs {', '.join(_KEYS)}, got {reprlib.repr(item)}")
    box, score = item["bbox"], item["score"]
    if not (isinstance(box, list) and len(box) == 4 and all(map(fits_float, box))):
        raise ValueError(f"{where}: bbox must be four numbers, got {reprlib.repr(box)}")
    if not fits_float(score):
        raise ValueError(f"{where}: score must be a number, got {reprlib.repr(score)}")
    for key in ("image_id", "category_id"):
        if type(item[key]) not in (int, str):  # a bool, which is an int to Python, is no id
            raise ValueError(
                f"{where}: {key} must be an id of the dataset, a whole number or text, got "
                f"{reprlib.repr(item[key])}"
            )
    where = f"{where} (image {item['image_id']!r})"
    if not math.isfinite(item["score"]):
        raise ValueError(f"{where} has a score of NaN or inf: {item['score']}")
    if not all(map(math.isfinite, box)):
        raise ValueError(f"{where} has a box with NaN or inf: {box}")
    if min(box[2:]) < 0:
        raise ValueError(f"{where} has a box of negative size: {box}, as x, y, width, height")


def _refuse_unknown(
    where: str, key: str, content: Sequence[dict], known: Sequence, record: Record
) -> None:
    all_known = set(known)
    used = list(dict.fromkeys(item[key] for item in content))
    unknown = [value for value in used if value not in all_known]
    if unknown:
        raise ValueError(
            f"{where} has {key} {_few(unknown)}, which dataset '{record.name}' ({record.source}) "
            f"does not have: its own are {_few(known)}. {_reason(used, all_known, record, key)}"
        )


def _few(values: Sequence) -> str:
    return ", ".join(map(repr, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")


def _reason(used: Sequence, known: Set, record: Record, key: str) -> str:
    """What would make all ids fit, or what it means that nothing does."""
    if all(isinstance(x, str) and x.strip().isdecimal() and int(x) in known for x in used):
        return "They are written as text: without quotation marks they fit"
    if all(isinstance(x, int) and x + 1 in known for x in used):
        return "With 1 added they fit: they may be counted from 0"
    if all(isinstance(x, int) and x - 1 in known for x in used):
        return "With 1 subtracted they fit: they may be counted from 1"
    if key == "image_id":
        stems = {Path(file).stem for file in record.images.files}
        if all(Path(str(x)).stem in stems for x in used):
            return "They are names of the pictures: write the ids of the ground truth"
    elif all(x in record.class_names for x in used):
        return "They are names of the classes: write the ids of the ground truth"
    return "It is of another dataset"
