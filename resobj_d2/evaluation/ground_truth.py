"""The ground truth of a dataset's record as COCO's code reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.coco_json import read_coco_content
from resobj_d2.data.record import Record

from .backend import CocoBackend

__all__ = [
    "category_numbers",
    "ground_truth",
    "ground_truth_index",
    "image_numbers",
    "prepare_ground_truth",
]

_LARGEST_ID = 2**53
# Beyond COCO's largest range, that of all areas: such objects are ignored, but matched by IoU.
_AREA_OF_IGNORED = 1e11


def image_numbers(record: Record) -> dict[int | str, int]:
    """Image ids to whole numbers that COCO's code can hold: themselves where they are such."""
    return _numbers(record.images.ids)


def category_numbers(record: Record) -> dict[int, int]:
    """The same of category ids."""
    return _numbers([category.id for category in record.categories])


def _numbers(ids: Sequence[int | str]) -> dict:
    whole = all(isinstance(identity, int) and 0 <= identity < _LARGEST_ID for identity in ids)
    return {identity: identity if whole else row + 1 for row, identity in enumerate(ids)}


def ground_truth(record: Record, task: str) -> dict:
    """The content of a COCO json that both implementations read alike.

    Annotations are numbered from 1, since COCO's code takes a match with annotation 0 for no match.
    Difficult objects are neither found nor missed: a detection that overlaps one as it would have
    to overlap any other object is ignored. They have an area beyond COCO's ranges for that, since
    its code takes no other mark; for keypoints they are crowd regions. So are, for masks, objects
    without a mask, with their box in its place.

    Args:
        record: of the dataset.
        task: "bbox", "segm" or "keypoints".
    """
    images, table = record.images, record.annotations
    numbers = list(image_numbers(record).values())
    categories = category_numbers(record)
    ids = np.array(list(categories.values()), dtype=object)
    by_area = table.difficult & ~table.crowd & (task != "keypoints")
    columns = zip(
        table.images.tolist(),
        ids[table.classes].tolist() if len(table) else [],
        table.boxes.tolist(),
        np.where(by_area, _AREA_OF_IGNORED, table.areas).tolist(),
        ((table.crowd | table.difficult) & ~by_area).astype(int).tolist(),
        strict=True,
    )
    annotations = []
    for row, (image, category, box, area, crowd) in enumerate(columns):
        annotation = {
            "id": row + 1,
            "image_id": numbers[image],
            "category_id": category,
            "bbox": box,
            "area": area,
            "iscrowd": crowd,
        }
        if task == "segm":
            _add_mask(annotation, table.masks[row])
        elif task == "keypoints":
            _add_keypoints(annotation, table.keypoints[row], _count_keypoints(record))
        annotations.append(annotation)
    sizes = zip(numbers, images.widths.tolist(), images.heights.tolist(), strict=True)
    return {
        "images": [{"id": i, "width": w, "height": h} for i, w, h in sizes],
        "categories": [{"id": categories[c.id], "name": c.name} for c in record.categories],
        "annotations": annotations,
    }


def _add_mask(annotation: dict, mask: list[np.ndarray] | dict | None) -> None:
    if isinstance(mask, dict):
        annotation["segmentation"] = dict(mask)
    elif mask is not None:
        annotation["segmentation"] = [polygon.tolist() for polygon in mask]
    else:
        x, y, width, height = annotation["bbox"]
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        annotation.update(segmentation=[corners], iscrowd=1)


def _count_keypoints(record: Record) -> int:
    counts = [len(category.keypoints) for category in record.categories]
    counts += [len(points) for points in record.annotations.keypoints if points is not None]
    return max(counts, default=0)


def _add_keypoints(annotation: dict, points: np.ndarray | None, count: int) -> None:
    points = np.zeros((count, 3)) if points is None else points
    annotation["keypoints"] = points.ravel().tolist()
    annotation["num_keypoints"] = int((points[:, 2] > 0).sum())


def ground_truth_index(dataset_name: str, backend: CocoBackend) -> tuple[object, dict]:
    """COCO's index over the boxes of a registered dataset, and its image ids by the dataset's."""
    record = dataset_record(dataset_name)
    return backend.index(ground_truth(record, "bbox")), image_numbers(record)


def prepare_ground_truth(content: Mapping, task: str = "bbox") -> tuple[dict, dict]:
    """As :func:`ground_truth`, from the content of a COCO json.

    Returns:
        The ground truth, and a dict from image ids of ``content`` to its image ids.
    """
    record = read_coco_content(content)
    return ground_truth(record, task), image_numbers(record)
