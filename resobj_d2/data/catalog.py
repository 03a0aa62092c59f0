"""The record of any dataset that Detectron2's catalogs know."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from .coco_json import read_coco_json
from .dicts import record_dicts, record_from_dicts
from .record import Category, Record
from .voc_xml import read_voc

__all__ = ["adopt", "dataset_record"]

_COCO = "register_coco_instances.<locals>.<lambda>"
_VOC = "register_pascal_voc.<locals>.<lambda>"


def adopt(name: str) -> None:
    """Have a dataset that ``register_coco_instances`` or ``register_pascal_voc`` made read here.

    Detectron2's own (``coco_2017_train``, ...) are among them. Nothing is read yet. What
    ``DatasetCatalog`` gives for it then comes from the record, as the evaluation's ground truth
    does. Datasets of other functions stay as they are.
    """
    metadata = MetadataCatalog.get(name)
    maker = getattr(DatasetCatalog[name], "__qualname__", "") if name in DatasetCatalog else ""
    if maker not in (_COCO, _VOC) or metadata.get("record") is not None:
        return

    @functools.cache
    def read() -> Record:
        if maker == _VOC:
            root = Path(PathManager.get_local_path(metadata.dirname))
            return read_voc(root, metadata.split, name, classes=metadata.thing_classes)
        path = Path(PathManager.get_local_path(metadata.json_file))
        record = read_coco_json(path, name, metadata.image_root, ours=False, refuse=True)
        _agree(record, metadata)
        return record

    DatasetCatalog[name] = lambda: record_dicts(read(), corners=maker == _VOC)
    metadata.set(record=read)


def _agree(record: Record, metadata) -> None:
    """Give the metadata the json's classes, or find that they are the same."""
    ours = {
        "thing_classes": record.class_names,
        "thing_dataset_id_to_contiguous_id": record.class_numbers,
    }
    for key, value in ours.items():
        there = metadata.get(key)
        if there is None and record.categories:
            metadata.set(**{key: value})
        elif there is not None and record.categories and there != value:
            raise ValueError(
                f"dataset '{record.name}': {key} of its metadata is {there}, but {record.source} "
                f"has {value}"
            )


def dataset_record(name: str) -> Record:
    """What is known of a registered dataset.

    Datasets of ``DATASETS.REGISTER`` have one record, which training reads too. Those that other
    code registered are read here: the COCO json or VOC folder that their metadata name, else what
    ``DatasetCatalog`` gives.

    Raises:
        ValueError, FileNotFoundError: as the readers of the formats.
    """
    adopt(name)
    metadata = MetadataCatalog.get(name)
    if metadata.get("record") is not None:
        return metadata.record()
    if metadata.get("json_file") is not None:
        path = PathManager.get_local_path(metadata.json_file)
        state = os.stat(path) if os.path.isfile(path) else None
        stamp = (state.st_mtime_ns, state.st_size) if state else None
        return _foreign_json(path, name, metadata.get("image_root") or "", stamp)
    if metadata.get("evaluator_type") == "pascal_voc" and metadata.get("dirname"):
        root = Path(PathManager.get_local_path(metadata.dirname))
        return read_voc(root, metadata.split, name, classes=metadata.thing_classes)
    ids = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    by_number = {number: identity for identity, number in ids.items()}
    names = metadata.get("thing_classes")
    dicts = DatasetCatalog.get(name)
    names = MetadataCatalog.get(name).get("thing_classes") if names is None else names
    categories = [Category(id=by_number.get(i, i), name=str(n)) for i, n in enumerate(names or ())]
    return record_from_dicts(name, dicts, categories)


@functools.lru_cache(maxsize=4)
def _foreign_json(path: str, name: str, image_root: str, stamp: object) -> Record:
    """Read once as long as the file stays the same."""
    return read_coco_json(Path(path), name, image_root, ours=False)
