"""From an entry of ``DATASETS.REGISTER`` to its dataset, format by format."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .coco_json import read_coco_json
from .csv_boxes import read_csv
from .entries import CocoEntry, CsvEntry, Entry, ScenesEntry, VocEntry, YoloEntry
from .record import Category, Record, select_classes
from .scenes.dataset import SPLITS, default_root, ensure_scenes
from .scenes.style import SceneStyle
from .voc_xml import read_voc, voc_folder
from .yolo_txt import YoloFolder, read_yolo, yolo_folder, yolo_yaml

__all__ = ["Source", "open_entry"]

_CHECKED_IMAGES = 3  # whose existence is checked


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset whose files have been found.

    Attributes:
        read: gives the record, the same at each call.
        categories: by class number.
        metadata: for Detectron2's catalog.
        corners: see :func:`.dicts.record_dicts`.
        pictures: some, for a check that the folder is the right one.
    """

    read: Callable[[], Record]
    categories: Sequence[Category]
    metadata: dict
    corners: bool = False
    pictures: Sequence[str | Path] = field(default_factory=list)


def open_entry(entry: Entry) -> Source:
    """Find the files of an entry and read its categories.

    Raises:
        ValueError: the annotations are inconsistent, or lack one of the entry's classes.
        FileNotFoundError: a file or folder is missing; the message has its absolute path.
    """
    return _OPEN[type(entry)](entry)


def _path(text: str) -> Path:
    return Path(os.path.expandvars(text)).expanduser().absolute()


def _open_coco(entry: CocoEntry) -> Source:
    json_file, image_root = _path(entry.json), _path(entry.images)
    record = read_coco_json(json_file, entry.name, image_root, box_format=entry.box_format)
    if entry.classes is not None:
        record = select_classes(record, entry.classes)
    if not image_root.is_dir():
        raise FileNotFoundError(f"dataset '{entry.name}': there is no image folder {image_root}")
    return Source(
        read=lambda: record,
        categories=record.categories,
        metadata={
            "json_file": str(json_file),
            "image_root": str(image_root),
            "evaluator_type": "coco",
        },
        pictures=record.images.files[:_CHECKED_IMAGES],
    )


def _open_scenes(entry: ScenesEntry) -> Source:
    if entry.split not in SPLITS:
        raise ValueError(
            f"DATASETS.REGISTER: dataset '{entry.name}': 'split' of the scenes must be one of "
            f"{', '.join(SPLITS)}, got {entry.split!r}"
        )
    root = default_root() if entry.root is None else _path(entry.root)
    style = SceneStyle(
        max_objects=entry.max_objects,
        max_diameter=entry.max_diameter,
        look_alikes=entry.look_alikes,
        distractors=entry.distractors,
    )
    ensure = functools.partial(
        ensure_scenes,
        root.absolute(),  # the working directory may be another one when they are needed
        name=entry.folder,
        image_size=entry.image_size,
        num_train=entry.num_train,
        num_val=entry.num_val,
        seed=entry.seed,
        style=style,
    )
    paths = ensure(generate=False)[entry.split]

    @functools.cache
    def read() -> Record:
        ensure()
        return read_coco_json(paths.json_file, entry.name, paths.image_root)

    return Source(
        read=read,
        categories=[Category(id=i, name=name) for i, name in enumerate(style.class_names, start=1)],
        metadata={
            "json_file": str(paths.json_file),
            "image_root": str(paths.image_root),
            "evaluator_type": "coco",
            "generate": ensure,
        },
    )


def _open_yolo(entry: YoloEntry) -> Source:
    if entry.yaml is not None:
        folder = yolo_yaml(_path(entry.yaml), entry.split, entry.name)
    else:
        labels = None if entry.labels is None else _path(entry.labels)
        folder = _yolo_without_yaml(entry, _path(entry.images), labels)

    @functools.cache
    def read() -> Record:
        record = read_yolo(folder, entry.name, box_format=entry.box_format)
        return record if entry.classes is None else select_classes(record, entry.classes)

    names = folder.names
    chosen = names if entry.classes is None else entry.classes
    missing = [name for name in chosen if name not in names]
    if missing:
        raise ValueError(
            f"dataset '{entry.name}' ({folder.source}) has no class "
            f"{', '.join(map(repr, missing))} of 'classes'; it has {', '.join(names)}"
        )
    return Source(
        read=read,
        categories=[Category(id=names.index(name), name=name) for name in chosen],
        metadata={"evaluator_type": "coco"},
    )


def _yolo_without_yaml(entry: YoloEntry, images: Path, labels: Path | None) -> YoloFolder:
    """``classes`` picks from ``classes.txt``, and stands for it where there is none."""
    try:
        return yolo_folder(images, labels, None, entry.name)
    except FileNotFoundError:
        return yolo_folder(images, labels, entry.classes, entry.name)


def _open_csv(entry: CsvEntry) -> Source:
    record = read_csv(
        _path(entry.csv),
        _path(entry.images),
        entry.name,
        classes=entry.classes,
        box_format=entry.box_format,
    )
    return Source(
        read=lambda: record,
        categories=record.categories,
        metadata={"evaluator_type": "coco"},
        pictures=record.images.files[:_CHECKED_IMAGES],
    )


def _open_voc(entry: VocEntry) -> Source:
    root = _path(entry.root)
    folder = voc_folder(root, entry.split, entry.name)
    first = list(folder.xml_files)[:_CHECKED_IMAGES]

    @functools.cache
    def read() -> Record:
        return read_voc(
            root,
            entry.split,
            entry.name,
            classes=entry.class_names,
            subset=entry.classes is not None,
            first_pixel=entry.first_pixel,
            box_format=entry.box_format,
        )

    return Source(
        read=read,
        categories=[Category(id=i, name=name) for i, name in enumerate(entry.class_names)],
        metadata={
            "dirname": str(root),
            "split": entry.split,
            "year": entry.year,
            "evaluator_type": "pascal_voc",
        },
        corners=True,
        pictures=[folder.picture_of(identity) for identity in first],
    )


_OPEN: dict[type, Callable] = {
    CocoEntry: _open_coco,
    VocEntry: _open_voc,
    YoloEntry: _open_yolo,
    CsvEntry: _open_csv,
    ScenesEntry: _open_scenes,
}
