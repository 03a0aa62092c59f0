"""Reading and checking a COCO json, with messages that say what is wrong and where.

Needs no Detectron2. The structure checked here is what Detectron2's ``load_coco_json`` and the
COCO evaluation rely on without saying so.
"""

from __future__ import annotations

import json
import logging
import math
import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_SHOWN = 3  # examples in a message


@dataclass(frozen=True)
class CocoSummary:
    """What registration needs to know of a checked COCO json.

    Attributes:
        category_ids, category_names: by ascending id; both empty when the json lists none, which
            only a json without annotations may do.
        file_names: of all images, relative to the image folder.
        num_boxes: usable boxes, crowd regions left out.
        num_degenerate: boxes without a positive finite size, which loading drops.
    """

    category_ids: tuple[int, ...]
    category_names: tuple[str, ...]
    file_names: tuple[str, ...]
    num_boxes: int
    num_degenerate: int


def is_degenerate(box: Sequence[float]) -> bool:
    """Whether an xywh box has a non-finite coordinate or no positive width and height."""
    return not (all(map(math.isfinite, box)) and box[2] > 0 and box[3] > 0)


def read_coco_json(json_file: Path, dataset_name: str) -> CocoSummary:
    """Read a COCO json and check everything that would fail later or, worse, would not fail.

    Raises:
        FileNotFoundError: there is no such file; the message has its absolute path.
        ValueError: the json is broken or inconsistent; the message names the data set, the file and
            the first entries at fault by id.
    """
    where = f"dataset '{dataset_name}' ({json_file.absolute()})"
    content = _parse(json_file, where)
    images = _list(content, "images", where)
    annotations = _list(content, "annotations", where) if "annotations" in content else []
    categories = (
        _list(content, "categories", where) if annotations or "categories" in content else []
    )
    if not images:
        raise ValueError(f"{where}: 'images' is empty")
    image_names = _check_images(images, where)
    names = _check_categories(categories, where)
    num_boxes, degenerate = _check_annotations(annotations, image_names, names, where)
    if degenerate:
        shown = "; ".join(
            f"annotation {item['id']} of image {item['image_id']}: {item['bbox']}"
            for item in degenerate[:_SHOWN]
        )
        logger.warning(
            f"{where}: {len(degenerate)} boxes have no positive finite size and are left out of "
            f"training and evaluation, for instance {shown}"
        )
    ids = tuple(sorted(names))
    return CocoSummary(
        category_ids=ids,
        category_names=tuple(names[identity] for identity in ids),
        file_names=tuple(image_names.values()),
        num_boxes=num_boxes,
        num_degenerate=len(degenerate),
    )


def _parse(json_file: Path, where: str) -> dict:
    if not json_file.is_file():
        raise FileNotFoundError(f"{where}: there is no such json file")
    try:
        content = json.loads(json_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{where}: not valid json: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{where}: a COCO data set is one object with the lists 'images', 'annotations' and "
            f"'categories', this file holds a {type(content).__name__}. Is it a results file?"
        )
    return content


def _list(content: dict, key: str, where: str) -> list[dict]:
    if not isinstance(content.get(key), list):
        present = ", ".join(map(repr, content)) or "nothing"
        raise ValueError(f"{where}: the list '{key}' is missing; the file has {present}")
    for position, item in enumerate(content[key]):
        if not isinstance(item, dict) or "id" not in item:
            shown = reprlib.repr(item)
            raise ValueError(f"{where}: {key}[{position}] must be an object with 'id', got {shown}")
    repeated = [i for i, n in Counter(item["id"] for item in content[key]).items() if n > 1]
    if repeated:
        shown = ", ".join(map(repr, repeated[:_SHOWN]))
        raise ValueError(
            f"{where}: {len(repeated)} ids occur twice in '{key}', for instance {shown}"
        )
    return content[key]


def _check_images(images: list[dict], where: str) -> dict:
    """Image ids to file names."""
    for image in images:
        missing = [key for key in ("file_name", "width", "height") if key not in image]
        if missing:
            raise ValueError(f"{where}: image {image['id']!r} has no {' and no '.join(missing)}")
    return {image["id"]: str(image["file_name"]) for image in images}


def _check_categories(categories: list[dict], where: str) -> dict:
    """Category ids to names."""
    for category in categories:
        if not isinstance(category["id"], int) or not isinstance(category.get("name"), str):
            raise ValueError(
                f"{where}: a category needs a whole number as 'id' and a non-empty string as "
                f"'name', got {category!r}"
            )
    return {category["id"]: category["name"] for category in categories}


def _check_annotations(
    annotations: list[dict], images: dict, categories: dict, where: str
) -> tuple[int, list[dict]]:
    """Number of usable boxes that are no crowd, and the annotations with degenerate boxes."""
    num_boxes, degenerate = 0, []
    for item in annotations:
        label = f"{where}: annotation {item['id']!r}"
        if item.get("image_id") not in images:
            raise ValueError(
                f"{label} is on image {item.get('image_id')!r}, which is not in 'images'"
            )
        label = f"{label} on image {item['image_id']!r} ('{images[item['image_id']]}')"
        if item.get("category_id") not in categories:
            known = ", ".join(f"{i}={name}" for i, name in list(categories.items())[:10])
            raise ValueError(
                f"{label} has category_id {item.get('category_id')!r}, which is not in "
                f"'categories' ({known}{', ...' if len(categories) > 10 else ''})"
            )
        _check_box_form(item.get("bbox"), label)
        if is_degenerate(item["bbox"]):
            degenerate.append(item)
        elif not item.get("iscrowd", 0):
            num_boxes += 1
    return num_boxes, degenerate


def _check_box_form(box: object, label: str) -> None:
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(value, (int, float)) for value in box)
    ):
        raise ValueError(
            f"{label} needs a 'bbox' of four numbers (x, y, width, height), got {box!r}"
        )
