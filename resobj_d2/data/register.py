"""Data sets registered from the config key ``DATASETS.REGISTER``; see docs/datasets.md.

The key holds a list of entries, each a dict with ``name``, ``format`` and the keys of that format:
the fields of :class:`CocoEntry`, :class:`VocEntry` or :class:`ScenesEntry`. What has no default is
required. Relative paths start at the working directory.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import (
    filter_images_with_only_crowd_annotations,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import load_coco_json

from .coco_json import is_degenerate, read_coco_json
from .scenes.dataset import SPLITS, default_root, ensure_scenes
from .scenes.shapes import CLASS_NAMES
from .voc_xml import VOC_CLASSES, image_path, load_voc, read_split

__all__ = [
    "CocoEntry",
    "ScenesEntry",
    "VocEntry",
    "check_available",
    "check_names",
    "check_num_classes",
    "register_datasets",
    "training_records",
]

logger = logging.getLogger(__name__)

_CHECKED_IMAGES = 3  # whose existence is checked when a data set is registered


@dataclass(frozen=True)
class CocoEntry:
    """A COCO json and the folder its file names are relative to."""

    name: str
    json: str
    images: str


@dataclass(frozen=True)
class VocEntry:
    """A folder in Pascal VOC's layout; ``year`` 2007 selects the 11-point AP of that challenge."""

    name: str
    root: str
    split: str
    classes: tuple[str, ...] = VOC_CLASSES
    year: int = 2012


@dataclass(frozen=True)
class ScenesEntry:
    """A split of the generated scenes, generated where missing when they are first needed.

    ``root`` is the folder of data sets (default: ``DETECTRON2_DATASETS``, else ``datasets``),
    ``folder`` the set's folder in it; the others are those of :func:`.scenes.ensure_scenes`.
    """

    name: str
    split: str
    root: str | None = None
    folder: str = "scenes"
    image_size: int = 160
    num_train: int = 1200
    num_val: int = 200
    seed: int = 0


Entry = CocoEntry | VocEntry | ScenesEntry
_FORMATS: dict[str, type[Entry]] = {"coco": CocoEntry, "voc": VocEntry, "scenes": ScenesEntry}


def register_datasets(entries: Iterable[Mapping]) -> None:
    """Check and register every entry of ``DATASETS.REGISTER``.

    Categories are read at once, so ``MetadataCatalog`` is complete afterwards; the records are
    loaded when ``DatasetCatalog`` is asked, and scenes generated then or by
    :func:`check_available`: prediction needs their class names alone. Registering an equal entry
    again does nothing, so every process of a launcher may call this.

    Raises:
        ValueError: an entry is malformed, its name is taken, or its annotations are inconsistent.
        FileNotFoundError: a file or folder is missing; the message has its absolute path.
    """
    if isinstance(entries, (str, Mapping)) or not isinstance(entries, Iterable):
        raise ValueError(f"DATASETS.REGISTER must be a list of dicts, got {entries!r}")
    for position, raw in enumerate(entries):
        entry = _parse_entry(raw, f"DATASETS.REGISTER[{position}]")
        if not _is_registered(entry):
            _REGISTER_FUNCTIONS[type(entry)](entry)
            MetadataCatalog.get(entry.name).registered_from = entry


def check_names(dataset_names: Iterable[str], config_key: str) -> None:
    """Check that data sets are registered.

    Raises:
        ValueError: a name is not registered; the message names ``config_key`` and similar names.
    """
    for name in dataset_names:
        if name not in DatasetCatalog:
            similar = difflib.get_close_matches(name, DatasetCatalog.keys(), n=3)
            raise ValueError(
                f"{config_key} names '{name}', which is not registered. "
                + (f"Did you mean {' or '.join(map(repr, similar))}? " if similar else "")
                + "Your own data are registered with DATASETS.REGISTER, see docs/datasets.md."
            )


def check_available(dataset_names: Iterable[str], config_key: str) -> None:
    """Check that data sets are registered and that their annotations are on disk.

    Scenes that are not there yet are generated.

    Args:
        dataset_names: names as in ``DATASETS.TRAIN``.
        config_key: the key they come from, for the message.

    Raises:
        ValueError: there is no name, or a name is not registered.
        FileNotFoundError: the annotations of a data set are missing.
    """
    names = list(dataset_names)
    if not names:
        raise ValueError(f"{config_key} is empty: it must name at least one registered dataset")
    check_names(names, config_key)
    for name in names:
        metadata = MetadataCatalog.get(name)
        if metadata.get("generate"):
            metadata.generate()
        needed = metadata.get("json_file") or metadata.get("dirname")
        if needed and "://" not in needed and not os.path.exists(needed):
            root = os.path.abspath(os.environ.get("DETECTRON2_DATASETS", "datasets"))
            raise FileNotFoundError(
                f"dataset '{name}' of {config_key}: {os.path.abspath(needed)} does not exist. "
                f"Detectron2's own datasets are expected below {root}; set the environment "
                "variable DETECTRON2_DATASETS to change that."
            )


def training_records(cfg) -> list[dict]:
    """The records of ``DATASETS.TRAIN`` in Detectron2's standard form, for the train loader.

    Images without boxes are kept unless ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` is set.

    Raises:
        ValueError, FileNotFoundError: as :func:`check_available`; also when no image has a box.
    """
    names = list(cfg.DATASETS.TRAIN)
    check_available(names, "DATASETS.TRAIN")
    model = cfg.MODEL
    records = get_detection_dataset_dicts(
        names,
        filter_empty=False,
        min_keypoints=model.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if model.KEYPOINT_ON else 0,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if model.LOAD_PROPOSALS else None,
    )
    boxes = (a for record in records for a in record.get("annotations", []))
    if not any(box.get("iscrowd", 0) == 0 for box in boxes):
        raise ValueError(
            f"none of the {len(records)} images of DATASETS.TRAIN ({', '.join(names)}) has a "
            "usable box, so there is nothing to learn. Does the json have an 'annotations' list, "
            "and is it that of the training set?"
        )
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = filter_images_with_only_crowd_annotations(records)
    return records


def check_num_classes(num_classes: Mapping[str, int], dataset_names: Iterable[str]) -> None:
    """Compare the class counts of the model's heads with those of its data sets.

    Args:
        num_classes: config key to value, for instance ``{"MODEL.DENSE.NUM_CLASSES": 80}``.
        dataset_names: registered data sets for training and testing.

    Raises:
        ValueError: a count differs; the message names key, data set, classes and the remedy.
    """
    first: tuple[str, list[str]] | None = None
    for name in dataset_names:
        classes = _class_names(name)
        if classes is None:
            continue
        for key, value in num_classes.items():
            if value != len(classes):
                shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
                raise ValueError(
                    f"{key} is {value}, but dataset '{name}' has {len(classes)} classes: {shown}. "
                    f"Set it in the config file or add to the command line: {key} {len(classes)}"
                )
        first = first or (name, classes)
        if classes != first[1]:
            logger.warning(
                f"datasets '{first[0]}' and '{name}' list different classes, so class numbers mean "
                f"different things: {', '.join(first[1])} and {', '.join(classes)}"
            )


def _class_names(dataset_name: str) -> list[str] | None:
    """Class names of a data set, which may have to be loaded for it; None if it has none."""
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("thing_classes") is None and metadata.get("registered_from") is None:
        DatasetCatalog.get(dataset_name)  # register_coco_instances sets the classes when it loads
    classes = metadata.get("thing_classes")
    return None if classes is None else list(classes)


def _parse_entry(raw: object, where: str) -> Entry:
    """An entry as its dataclass, or a ValueError that says which key is wrong."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where} must be a dict, got {raw!r}")
    where = f"{where} ('{raw['name']}')" if "name" in raw else where
    name_of_format = raw.get("format", "coco")
    if name_of_format not in _FORMATS:
        raise ValueError(
            f"{where}: unknown format {name_of_format!r}; known are {', '.join(_FORMATS)}"
        )
    kind = _FORMATS[name_of_format]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    given = {key: value for key, value in raw.items() if key != "format"}
    for key in given:
        if key not in fields:
            similar = difflib.get_close_matches(str(key), fields, n=1)
            raise ValueError(
                f"{where}: unknown key {key!r}; the keys of format '{name_of_format}' are "
                f"{', '.join(fields)}" + (f". Did you mean '{similar[0]}'?" if similar else "")
            )
    for key, field in fields.items():
        if key not in given and field.default is dataclasses.MISSING:
            raise ValueError(f"{where}: format '{name_of_format}' needs the key '{key}'")
    _check_types(given, where)
    if "classes" in given:
        given["classes"] = tuple(given["classes"])
    return kind(**given)


def _check_types(given: dict, where: str) -> None:
    for key in ("name", "json", "images", "root", "split", "folder"):
        value = given.get(key, "unset")
        if not isinstance(value, str) or not value:
            raise ValueError(f"{where}: '{key}' must be a non-empty string, got {value!r}")
    classes = given.get("classes", ["unset"])
    if (
        not isinstance(classes, (list, tuple))
        or not classes
        or not all(isinstance(name, str) for name in classes)
        or len(set(classes)) < len(classes)
    ):
        raise ValueError(f"{where}: 'classes' must be a list of distinct strings, got {classes!r}")
    if given.get("year", 2012) not in (2007, 2012):
        raise ValueError(f"{where}: 'year' must be 2007 or 2012, got {given['year']!r}")


def _is_registered(entry: Entry) -> bool:
    """Whether an equal entry is registered already; a ValueError if the name means another one."""
    if entry.name not in DatasetCatalog:
        return False
    earlier = MetadataCatalog.get(entry.name).get("registered_from")
    if earlier != entry:
        other = "by Detectron2 or other code" if earlier is None else f"as {earlier}"
        raise ValueError(
            f"DATASETS.REGISTER: the name '{entry.name}' is already registered {other}; "
            f"choose another name for {entry}"
        )
    return True


def _path(text: str) -> Path:
    return Path(os.path.expandvars(text)).expanduser().absolute()


def _register_coco(entry: CocoEntry) -> None:
    _register_json(entry.name, _path(entry.json), _path(entry.images))


def _register_scenes(entry: ScenesEntry) -> None:
    if entry.split not in SPLITS:
        raise ValueError(
            f"DATASETS.REGISTER: dataset '{entry.name}': 'split' of the scenes must be one of "
            f"{', '.join(SPLITS)}, got {entry.split!r}"
        )
    root = default_root() if entry.root is None else _path(entry.root)
    ensure = functools.partial(
        ensure_scenes,
        root.absolute(),  # the working directory may be another one when they are needed
        name=entry.folder,
        image_size=entry.image_size,
        num_train=entry.num_train,
        num_val=entry.num_val,
        seed=entry.seed,
    )
    paths = ensure(generate=False)[entry.split]
    json_file, image_root = str(paths.json_file), str(paths.image_root)

    def load() -> list[dict]:
        ensure()
        return _load_json(entry.name, json_file, image_root, True)

    DatasetCatalog.register(entry.name, load)
    MetadataCatalog.get(entry.name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco",
        thing_classes=list(CLASS_NAMES),
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(CLASS_NAMES))},
        generate=ensure,
    )


def _register_json(name: str, json_file: Path, image_root: Path) -> None:
    json_file, image_root = json_file.absolute(), image_root.absolute()
    summary = read_coco_json(json_file, name)
    if not image_root.is_dir():
        raise FileNotFoundError(f"dataset '{name}': there is no image folder {image_root}")
    _check_images_exist(name, [image_root / file for file in summary.file_names[:_CHECKED_IMAGES]])
    has_categories = bool(summary.category_ids)
    loader = functools.partial(_load_json, name, str(json_file), str(image_root), has_categories)
    DatasetCatalog.register(name, loader)
    metadata = MetadataCatalog.get(name)
    metadata.set(json_file=str(json_file), image_root=str(image_root), evaluator_type="coco")
    if has_categories:
        numbers = {identity: number for number, identity in enumerate(summary.category_ids)}
        metadata.set(
            thing_classes=list(summary.category_names), thing_dataset_id_to_contiguous_id=numbers
        )


def _load_json(name: str, json_file: str, image_root: str, has_categories: bool) -> list[dict]:
    """Load through Detectron2, without degenerate boxes and with the data set's name added."""
    records = load_coco_json(json_file, image_root, name if has_categories else None)
    for record in records:
        record["annotations"] = [a for a in record["annotations"] if not is_degenerate(a["bbox"])]
        record["dataset_name"] = name
    return records


def _register_voc(entry: VocEntry) -> None:
    root = _path(entry.root)
    identities = read_split(root, entry.split, entry.name)
    paths = [image_path(root, identity) for identity in identities[:_CHECKED_IMAGES]]
    _check_images_exist(entry.name, paths)
    loader = functools.partial(load_voc, root, entry.split, entry.classes, entry.name)
    DatasetCatalog.register(entry.name, loader)
    MetadataCatalog.get(entry.name).set(
        thing_classes=list(entry.classes),
        dirname=str(root),
        split=entry.split,
        year=entry.year,
        evaluator_type="pascal_voc",
    )


def _check_images_exist(name: str, paths: list[Path]) -> None:
    """Catch a wrong image folder at once; single missing images show when they are read."""
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"dataset '{name}': image {path} does not exist. Is the image folder "
                "the one that the file names of the annotations are relative to?"
            )


_REGISTER_FUNCTIONS = {
    CocoEntry: _register_coco,
    VocEntry: _register_voc,
    ScenesEntry: _register_scenes,
}
