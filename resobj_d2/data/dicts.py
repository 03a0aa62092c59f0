"""Records in Detectron2's standard form, and the other way round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from detectron2.structures import BoxMode

from .assemble import Rows, assemble, image_table
from .notes import Notes
from .record import Category, Record

__all__ = ["record_dicts", "record_from_dicts"]


def record_dicts(record: Record, *, corners: bool = False) -> list[dict]:
    """A record as Detectron2's list of dicts, one for each image.

    Those of a dataset without annotations have no "annotations": not even an empty list, which
    says that there is nothing on the image.

    Args:
        record: the dataset.
        corners: as Detectron2 reads VOC: XYXY boxes, and "difficult" in place of "iscrowd".
    """
    images, table = record.images, record.annotations
    boxes = table.boxes
    if corners:
        boxes = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    mode = BoxMode.XYXY_ABS if corners else BoxMode.XYWH_ABS
    columns = boxes.tolist(), table.classes.tolist(), table.crowd.tolist(), table.difficult.tolist()
    dicts = []
    for row, rows in enumerate(record.rows_by_image()):
        entry = {
            "file_name": images.files[row],
            "image_id": images.ids[row],
            "height": int(images.heights[row]),
            "width": int(images.widths[row]),
            "dataset_name": record.name,
        }
        if record.annotated:
            entry["annotations"] = [
                _annotation(record, i, mode, [column[i] for column in columns])
                for i in rows.tolist()
            ]
        dicts.append(entry)
    return dicts


def _annotation(record: Record, row: int, mode: BoxMode, values: Sequence) -> dict:
    box, category, crowd, difficult = values
    annotation = {"bbox": box, "bbox_mode": mode, "category_id": category}
    if mode == BoxMode.XYXY_ABS:
        annotation["difficult"] = int(difficult)
    else:
        annotation["iscrowd"] = int(crowd)
        if difficult:
            annotation["difficult"] = 1
    mask, keypoints = record.annotations.masks[row], record.annotations.keypoints[row]
    if mask is not None:
        annotation["segmentation"] = dict(mask) if isinstance(mask, dict) else mask
    if keypoints is not None:
        # From pixel indices to coordinates.
        annotation["keypoints"] = (keypoints + [0.5, 0.5, 0]).ravel().tolist()
    return annotation


def record_from_dicts(
    name: str, dicts: Sequence[Mapping], categories: Sequence[Category]
) -> Record:
    """The record of a dataset that other code put into ``DatasetCatalog``.

    Raises:
        ValueError: a box is rotated, or a class number has no category.
    """
    where = f"dataset '{name}'"
    images = image_table(
        [entry.get("image_id", row) for row, entry in enumerate(dicts)],
        [str(entry.get("file_name", "")) for entry in dicts],
        [(int(entry["width"]), int(entry["height"])) for entry in dicts],
    )
    rows = Rows()
    for row, entry in enumerate(dicts):
        for item in entry.get("annotations", ()):
            label = f"{where}: an annotation of image {images.ids[row]!r}"
            if not 0 <= item["category_id"] < len(categories):
                raise ValueError(
                    f"{label} has class {item['category_id']}, but thing_classes of its metadata "
                    f"has {len(categories)} name{'' if len(categories) == 1 else 's'}"
                )
            rows.add(
                image=row,
                category=int(item["category_id"]),
                box=_xywh(item, label),
                crowd=int(bool(item.get("iscrowd", 0))),
                difficult=int(bool(item.get("difficult", 0))),
                mask=_mask(item.get("segmentation")),
                keypoints=_keypoints(item.get("keypoints")),
            )
            rows.areas[-1] = _area(rows.masks[-1])
    return assemble(
        name=name,
        source="DatasetCatalog",
        categories=categories,
        images=images,
        rows=rows,
        notes=Notes(where),
        refuse=False,
    )


def _xywh(item: Mapping, label: str) -> list[float]:
    box = [float(value) for value in item["bbox"]]
    if len(box) != 4:
        raise ValueError(
            f"{label} has a box of {len(box)} numbers: rotated boxes are not evaluated"
        )
    return [float(v) for v in BoxMode.convert(box, item["bbox_mode"], BoxMode.XYWH_ABS)]


def _mask(segmentation: object) -> list[np.ndarray] | dict | None:
    """Polygons, RLE or a bitmap, as Detectron2 allows."""
    if isinstance(segmentation, np.ndarray):
        from pycocotools import mask

        segmentation = mask.encode(np.asfortranarray(segmentation.astype(np.uint8)))
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
        return {"size": [int(side) for side in segmentation["size"]], "counts": counts}
    if not segmentation:
        return None
    return [np.asarray(polygon, dtype=np.float64).ravel() for polygon in segmentation] or None


def _area(mask: list[np.ndarray] | dict | None) -> float:
    """Of a mask in square pixels; NaN without one. Polygons by the shoelace formula."""
    if mask is None:
        return math.nan
    if isinstance(mask, dict):
        from pycocotools import mask as masks

        return float(masks.area(mask))
    area = 0.0
    for polygon in mask:
        x, y = polygon[0::2], polygon[1::2]
        area += abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    return float(area)


def _keypoints(values: Sequence[float] | None) -> np.ndarray | None:
    if not values:
        return None
    return np.asarray(values, dtype=np.float64).reshape(-1, 3) - [0.5, 0.5, 0]
