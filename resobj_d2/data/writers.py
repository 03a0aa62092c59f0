"""Writing a record in the formats that can be registered.

Each writer puts a split into a folder that may hold other splits of the same set, writes the file
that makes it readable last, and returns the entry of ``DATASETS.REGISTER`` that reads it.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from resobj_d2.process import replacing

from .folder_writers import write_voc, write_yolo
from .record import Record
from .writing import (
    PICTURES,
    check_names,
    new_file,
    picture_names,
    picture_root,
    place_pictures,
    say_lost,
)

__all__ = ["PICTURES", "WRITERS", "write_coco", "write_csv", "write_voc", "write_yolo"]

logger = logging.getLogger(__name__)


def write_coco(record: Record, folder: Path, split: str, pictures: str) -> dict:
    """``<split>.json`` and the pictures below ``images``.

    Image ids and annotation ids that are strings become numbers, which other readers of COCO's
    format expect. What a source marked 'ignore' is a crowd region in the record, and here.
    """
    json_file = new_file(folder / f"{split}.json")
    names = picture_names(record)
    place_pictures(record, [folder / "images" / name for name in names], pictures)
    ids = record.images.ids
    numbers = _numbers(record, "images", ids)
    rows = _numbers(record, "annotations", record.annotations.ids)
    images = record.images
    columns = zip(numbers, names, images.widths.tolist(), images.heights.tolist(), strict=True)
    content = {
        "images": [
            {"id": identity, "file_name": name, "width": width, "height": height}
            for identity, name, width, height in columns
        ],
        "categories": [_coco_category(category) for category in record.categories],
    }
    if record.annotated:
        content["annotations"] = [
            _coco_annotation(record, row, number, numbers) for row, number in enumerate(rows)
        ]
    with replacing(json_file) as file:
        json.dump(content, file)
    entry = {
        "format": "coco",
        "json": str(json_file),
        "images": picture_root(record, folder, pictures),
    }
    ascending = [category.id for category in record.categories]
    if ascending != sorted(ascending):  # the json alone would order the classes by id
        entry["classes"] = record.class_names
    return entry


def _numbers(record: Record, kind: str, ids: Sequence[int | str]) -> Sequence[int]:
    """The ids where all are different numbers, else 1, 2, ..."""
    numbers = [identity for identity in ids if isinstance(identity, int)]
    if len(set(numbers)) == len(ids):
        return numbers
    if kind == "images":  # ids of annotations are names of lines in most formats
        logger.info("dataset '%s': ids of images become 1 to %d", record.name, len(ids))
    return range(1, len(ids) + 1)


def _coco_category(category) -> dict:
    entry = {"id": category.id, "name": category.name}
    if category.keypoints:
        entry["keypoints"] = list(category.keypoints)
        entry["skeleton"] = [[a + 1, b + 1] for a, b in category.skeleton]
    return entry


def _coco_annotation(record: Record, row: int, identity: int, numbers: Sequence[int]) -> dict:
    table = record.annotations
    annotation = {
        "id": identity,
        "image_id": numbers[table.images[row]],
        "category_id": record.categories[table.classes[row]].id,
        "bbox": table.boxes[row].tolist(),
        "area": float(table.areas[row]),
        "iscrowd": int(table.crowd[row]),
    }
    if table.difficult[row]:
        annotation["difficult"] = 1
    mask, keypoints = table.masks[row], table.keypoints[row]
    if mask is not None:
        is_rle = isinstance(mask, dict)
        annotation["segmentation"] = mask if is_rle else [polygon.tolist() for polygon in mask]
    if keypoints is not None:
        annotation["keypoints"] = keypoints.ravel().tolist()
        annotation["num_keypoints"] = int((keypoints[:, 2] > 0).sum())
    return annotation


def write_csv(record: Record, folder: Path, split: str, pictures: str) -> dict:
    """``<split>.csv`` and the pictures below ``images``; what is no box or class stays out."""
    check_names(record, record.class_names, "class name")
    names = picture_names(record)
    check_names(record, names, "file name")
    csv_file = new_file(folder / f"{split}.csv")
    say_lost(record, "CSV", crowd=True, masks=True, keypoints=True, difficult=True)
    place_pictures(record, [folder / "images" / name for name in names], pictures)
    images, table = record.images, record.annotations
    header = ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]
    with replacing(csv_file) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row, rows in enumerate(record.rows_by_image()):
            start = [names[row], int(images.widths[row]), int(images.heights[row])]
            boxes = rows[~table.crowd[rows]].tolist()
            for i in boxes:
                x, y, width, height = table.boxes[i].tolist()
                corners = [f"{v:.12g}" for v in (x, y, x + width, y + height)]
                writer.writerow([*start, record.categories[table.classes[i]].name, *corners])
            if not boxes:
                writer.writerow([*start, "", "", "", "", ""])
    return {
        "format": "csv",
        "csv": str(csv_file),
        "images": picture_root(record, folder, pictures),
        "classes": record.class_names,
    }


WRITERS: dict[str, Callable[[Record, Path, str, str], dict]] = {
    "coco": write_coco,
    "voc": write_voc,
    "yolo": write_yolo,
    "csv": write_csv,
}
