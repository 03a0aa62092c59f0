"""Writing a record in the formats that can be registered.

Each writer puts a split into a folder that may hold other splits of the same set, writes the file
that makes it readable last, and returns the entry of ``DATASETS.REGISTER`` that reads it.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import yaml

from resobj_d2.process import replacing

from .record import Record

__all__ = ["PICTURES", "WRITERS", "write_coco", "write_csv", "write_voc", "write_yolo"]

logger = logging.getLogger(__name__)

PICTURES = ("link", "copy", "none")


def write_coco(record: Record, folder: Path, split: str, pictures: str) -> dict:
    """``<split>.json`` and the pictures below ``images``; nothing is lost."""
    json_file = _new(folder / f"{split}.json")
    names = _names(record)
    _place(record, [folder / "images" / name for name in names], pictures)
    ids = record.images.ids
    whole = all(isinstance(identity, int) for identity in ids)
    numbers = ids if whole else list(range(1, len(ids) + 1))
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
            _coco_annotation(record, row, numbers) for row in range(len(record.annotations))
        ]
    with replacing(json_file) as file:
        json.dump(content, file)
    entry = {"format": "coco", "json": str(json_file), "images": _root(record, folder, pictures)}
    ascending = [category.id for category in record.categories]
    if ascending != sorted(ascending):  # the json alone would order the classes by id
        entry["classes"] = record.class_names
    return entry


def _coco_category(category) -> dict:
    entry = {"id": category.id, "name": category.name}
    if category.keypoints:
        entry["keypoints"] = list(category.keypoints)
        entry["skeleton"] = [[a + 1, b + 1] for a, b in category.skeleton]
    return entry


def _coco_annotation(record: Record, row: int, numbers: Sequence[int]) -> dict:
    table = record.annotations
    annotation = {
        "id": row + 1,
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


def write_voc(record: Record, folder: Path, split: str, pictures: str) -> dict:
    """VOC's layout with the list ``<split>.txt``; crowd regions, masks and keypoints stay out."""
    list_file = _new(folder / "ImageSets" / "Main" / f"{split}.txt")
    _say_lost(record, "VOC", crowd=True, masks=True, keypoints=True)
    names = [name.replace("/", "_") for name in _names(record)]
    stems = [os.path.splitext(name)[0] for name in names]
    if len(set(stems)) < len(stems):
        raise ValueError(f"dataset '{record.name}': two pictures differ in folder and ending alone")
    for part in ("Annotations", "JPEGImages"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    _place(record, [folder / "JPEGImages" / name for name in names], pictures)
    for row, rows in enumerate(record.rows_by_image()):
        tree = _voc_tree(record, row, rows, names[row])
        ElementTree.indent(tree)
        path = folder / "Annotations" / f"{stems[row]}.xml"
        path.write_bytes(ElementTree.tostring(tree, encoding="utf-8"))
    with replacing(list_file) as file:
        file.writelines(f"{stem}\n" for stem in stems)
    return {
        "format": "voc",
        "root": str(folder),
        "split": split,
        "classes": record.class_names,
    }


def _voc_tree(record: Record, row: int, rows: np.ndarray, name: str) -> ElementTree.Element:
    images, table = record.images, record.annotations
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = name
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", images.widths[row]), ("height", images.heights[row])):
        ElementTree.SubElement(size, tag).text = str(int(value))
    ElementTree.SubElement(size, "depth").text = "3"
    for i in rows.tolist():
        if table.crowd[i]:
            continue
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = record.categories[table.classes[i]].name
        ElementTree.SubElement(item, "pose").text = "Unspecified"
        ElementTree.SubElement(item, "truncated").text = "0"
        ElementTree.SubElement(item, "difficult").text = str(int(table.difficult[i]))
        box = ElementTree.SubElement(item, "bndbox")
        x, y, width, height = table.boxes[i].tolist()
        # VOC counts pixels from 1, and both ends belong to the object.
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
        for tag, value in corners.items():
            ElementTree.SubElement(box, tag).text = f"{value:.12g}"
    return root


def write_yolo(record: Record, folder: Path, split: str, pictures: str) -> dict:
    """``images/<split>``, ``labels/<split>`` and ``data.yaml``; crowd regions, masks, keypoints and
    marks of difficult objects stay out."""
    labels = folder / "labels" / split
    if labels.exists():
        raise FileExistsError(f"{labels} is there already: choose another folder or split")
    yaml_file = folder / "data.yaml"
    content = _yolo_content(yaml_file, record)
    if pictures == "none":
        raise ValueError("YOLO's layout holds the pictures: link or copy them")
    _say_lost(record, "YOLO", crowd=True, masks=True, keypoints=True, difficult=True)
    names = _names(record)
    _place(record, [folder / "images" / split / name for name in names], pictures)
    images, table = record.images, record.annotations
    for row, rows in enumerate(record.rows_by_image()):
        size = np.array([images.widths[row], images.heights[row]], dtype=np.float64)
        lines = []
        for i in rows[~table.crowd[rows]].tolist():
            box = table.boxes[i]
            values = [*((box[:2] + box[2:] / 2) / size), *(box[2:] / size)]
            numbers = " ".join(f"{value:.12g}" for value in values)
            lines.append(f"{table.classes[i]} {numbers}\n")
        path = (labels / names[row]).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")
    content[split] = f"images/{split}"
    with replacing(yaml_file) as file:
        yaml.safe_dump(content, file, sort_keys=False, allow_unicode=True)
    return {"format": "yolo", "yaml": str(yaml_file), "split": split}


def _yolo_content(yaml_file: Path, record: Record) -> dict:
    """Of the yaml that is there, to which a split is added; else of a new one."""
    names = record.class_names
    if not yaml_file.exists():
        return {"names": dict(enumerate(names))}
    content = yaml.safe_load(yaml_file.read_text(encoding="utf-8"))
    there = content.get("names") if isinstance(content, dict) else None
    if there not in (names, dict(enumerate(names))):
        raise ValueError(f"{yaml_file} is of other classes: {there!r} there, {names} here")
    return content


def write_csv(record: Record, folder: Path, split: str, pictures: str) -> dict:
    """``<split>.csv`` and the pictures below ``images``; what is no box or class stays out."""
    csv_file = _new(folder / f"{split}.csv")
    _say_lost(record, "CSV", crowd=True, masks=True, keypoints=True, difficult=True)
    names = _names(record)
    _place(record, [folder / "images" / name for name in names], pictures)
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
        "images": _root(record, folder, pictures),
        "classes": [n for n in record.class_names if n in _present(record)],
    }


def _present(record: Record) -> set[str]:
    table = record.annotations
    return {record.categories[number].name for number in np.unique(table.classes[~table.crowd])}


WRITERS: dict[str, Callable[[Record, Path, str, str], dict]] = {
    "coco": write_coco,
    "voc": write_voc,
    "yolo": write_yolo,
    "csv": write_csv,
}


def _new(path: Path) -> Path:
    if path.exists():
        raise FileExistsError(f"{path} is there already: choose another folder or split")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _names(record: Record) -> list[str]:
    """Paths of the pictures below the folder that they have in common."""
    files = record.images.files
    base = _base(record)
    return [os.path.relpath(os.path.abspath(file), base).replace(os.sep, "/") for file in files]


def _base(record: Record) -> str:
    return os.path.commonpath([os.path.dirname(os.path.abspath(f)) for f in record.images.files])


def _root(record: Record, folder: Path, pictures: str) -> str:
    return _base(record) if pictures == "none" else str(folder / "images")


def _place(record: Record, targets: Sequence[Path], pictures: str) -> None:
    """Link or copy the pictures to where they belong; those that are there stay."""
    if pictures == "none":
        return
    for source, target in zip(record.images.files, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            if not os.path.samefile(source, target) and not _equal(source, target):
                raise FileExistsError(f"{target} is another picture than {source}")
        elif not os.path.isfile(source):
            raise FileNotFoundError(f"dataset '{record.name}': there is no picture {source}")
        elif pictures == "link":
            target.symlink_to(os.path.abspath(source))
        else:
            shutil.copyfile(source, target)


def _equal(first: str, second: Path) -> bool:
    if os.path.getsize(first) != os.path.getsize(second):
        return False
    return Path(first).read_bytes() == second.read_bytes()


def _say_lost(record: Record, name: str, **kinds: bool) -> None:
    """Say what the format cannot hold."""
    table = record.annotations
    counts = {
        "crowd regions": int(table.crowd.sum()) if kinds.get("crowd") else 0,
        "marks of difficult objects": int(table.difficult.sum()) if kinds.get("difficult") else 0,
        "masks": sum(m is not None for m in table.masks) if kinds.get("masks") else 0,
        "sets of keypoints": (
            sum(k is not None for k in table.keypoints) if kinds.get("keypoints") else 0
        ),
    }
    lost = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    if lost:
        logger.warning("dataset '%s': %s stay out, which %s does not hold", record.name, lost, name)
