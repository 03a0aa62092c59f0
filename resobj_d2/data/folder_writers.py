"""Writing the layouts of Pascal VOC and YOLO: folders with an annotation file for each picture."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import yaml

from resobj_d2.process import replacing, told_as

from .picture_files import PICTURE_ENDINGS
from .record import Record
from .writing import (
    check_names,
    new_file,
    picture_names,
    place_pictures,
    refuse_equal,
    say_lost,
)
from .yolo_lines import looks_like_box
from .yolo_txt import label_of, read_yaml

__all__ = ["write_voc", "write_yolo"]

_ROUNDING = 1e-6  # pixels


def write_voc(record: Record, folder: Path, split: str, pictures: str) -> dict:
    """VOC's layout with the list ``<split>.txt``; crowd regions, masks and keypoints stay out."""
    if pictures == "none":
        raise ValueError("VOC's layout holds the pictures: link or copy them")
    check_names(record, record.class_names, "class name")
    names = [name.replace("/", "_") for name in picture_names(record)]
    check_names(record, names, "file name")
    stems = [os.path.splitext(name)[0] for name in names]
    refuse_equal(record, stems, "their names without folder and ending")
    rows_by_image = record.rows_by_image()
    documents = [folder / "Annotations" / f"{stem}.xml" for stem in stems]
    for row, path in enumerate(documents):
        if path.exists():  # of another split
            document = _voc_document(record, row, rows_by_image[row], names[row])
            if not path.is_file() or path.read_bytes() != document:
                raise FileExistsError(f"{path} is there with other content: choose another folder")
    list_file = new_file(folder / "ImageSets" / "Main" / f"{split}.txt")
    say_lost(record, "VOC", crowd=True, masks=True, keypoints=True)
    for part in ("Annotations", "JPEGImages"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    place_pictures(record, [folder / "JPEGImages" / name for name in names], pictures)
    for row, path in enumerate(documents):
        # Whole or not at all, so that the same command succeeds after it was killed.
        temporary = path.with_suffix(".tmp")
        with told_as(path, temporary):
            temporary.write_bytes(_voc_document(record, row, rows_by_image[row], names[row]))
            os.replace(temporary, path)
    with replacing(list_file) as file:
        file.writelines(f"{stem}\n" for stem in stems)
    return {
        "format": "voc",
        "root": str(folder),
        "split": split,
        "classes": record.class_names,
    }


def _voc_document(record: Record, row: int, rows: np.ndarray, name: str) -> bytes:
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
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8")


def write_yolo(record: Record, folder: Path, split: str, pictures: str) -> dict:
    """``images/<split>``, ``labels/<split>`` and ``data.yaml``; crowd regions, keypoints and marks
    of difficult objects stay out. Lines are polygons where each object has one that is its mask and
    gives its box; otherwise boxes, and masks stay out."""
    labels = folder / "labels" / split
    if labels.exists():
        raise FileExistsError(f"{labels} is there already: choose another folder or split")
    if pictures == "none":
        raise ValueError("YOLO's layout holds the pictures: link or copy them")
    yaml_file = folder / "data.yaml"
    content = _yolo_content(yaml_file, record)
    if split in content:
        raise FileExistsError(f"{yaml_file} has '{split}' already: choose another folder or split")
    check_names(record, record.class_names, "class name")
    places = [folder / "images" / split / name for name in picture_names(record)]
    label_files = [label_of(place) for place in places]  # where they will be looked for
    refuse_equal(record, label_files, "their names without ending")
    _refuse_unknown_endings(record)
    polygons = _only_polygons(record)
    say_lost(record, "YOLO", crowd=True, masks=not polygons, keypoints=True, difficult=True)
    place_pictures(record, places, pictures)
    images, table = record.images, record.annotations
    for row, rows in enumerate(record.rows_by_image()):
        size = np.array([images.widths[row], images.heights[row]], dtype=np.float64)
        lines = []
        for i in rows[~table.crowd[rows]].tolist():
            box = table.boxes[i]
            values = [*((box[:2] + box[2:] / 2) / size), *(box[2:] / size)]
            if polygons:
                values = (table.masks[i][0].reshape(-1, 2) / size).ravel().tolist()
            numbers = " ".join(f"{value:.12g}" for value in values)
            lines.append(f"{table.classes[i]} {numbers}\n")
        label_files[row].parent.mkdir(parents=True, exist_ok=True)
        label_files[row].write_text("".join(lines), encoding="utf-8")
    content[split] = f"images/{split}"
    with replacing(yaml_file) as file:
        yaml.safe_dump(content, file, sort_keys=False, allow_unicode=True)
    return {"format": "yolo", "yaml": str(yaml_file), "split": split}


def _only_polygons(record: Record) -> bool:
    """Whether polygons would be read back as what they are, with the same boxes."""
    images, table = record.images, record.annotations
    rows = np.flatnonzero(~table.crowd)
    for i in rows.tolist():
        mask = table.masks[i]
        if not isinstance(mask, list) or len(mask) != 1:
            return False
        points = mask[0].reshape(-1, 2)
        low, high = points.min(axis=0), points.max(axis=0)
        size = np.array([images.widths[table.images[i]], images.heights[table.images[i]]])
        if np.abs(np.hstack([low, high - low]) - table.boxes[i]).max() > _ROUNDING:
            return False
        if looks_like_box((points / size).ravel().tolist(), normalized=True):
            return False
    return len(rows) > 0


def _refuse_unknown_endings(record: Record) -> None:
    for file in record.images.files:
        if os.path.splitext(file)[1].lower() not in PICTURE_ENDINGS:
            raise ValueError(
                f"dataset '{record.name}': YOLO's layout knows pictures by their ending, and "
                f"{file} has none of {' '.join(PICTURE_ENDINGS)}: rename it, or use another format"
            )


def _yolo_content(yaml_file: Path, record: Record) -> dict:
    """Of the yaml that is there, to which a split is added; else of a new one."""
    names = record.class_names
    if not yaml_file.exists():
        return {"names": dict(enumerate(names))}
    content = read_yaml(yaml_file, str(yaml_file))
    there = content.get("names") if isinstance(content, dict) else None
    if there not in (names, dict(enumerate(names))):
        raise ValueError(f"{yaml_file} is of other classes: {there!r} there, {names} here")
    return content
