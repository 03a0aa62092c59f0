"""Datasets registered from the config key ``DATASETS.REGISTER``; see docs/datasets.md.

The key holds a list of entries, each a dict with ``name``, ``format`` and the keys of that format:
the fields of :class:`CocoEntry`, :class:`VocEntry`, :class:`YoloEntry`, :class:`CsvEntry` or
:class:`ScenesEntry`. What has no default is
required. Relative paths start at the working directory.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import (
    filter_images_with_only_crowd_annotations,
    get_detection_dataset_dicts,
)

from resobj_d2.process import counted, similar_names

from .catalog import adopt
from .dicts import record_dicts
from .entries import (
    CocoEntry,
    CsvEntry,
    Entry,
    ScenesEntry,
    VocEntry,
    YoloEntry,
    parse_entry,
)
from .keypoints import flip_map
from .notes import refuse_lossy
from .open_entry import Source, open_entry
from .proposals import add_proposals
from .record import Category
from .shapes_for_training import fit_shapes

__all__ = [
    "CocoEntry",
    "CsvEntry",
    "ScenesEntry",
    "VocEntry",
    "YoloEntry",
    "check_available",
    "check_names",
    "evaluation_records",
    "refuse_lossy_sets",
    "register_datasets",
    "training_records",
]

logger = logging.getLogger(__name__)


def register_datasets(
    entries: Iterable[Mapping],
    where: str = "DATASETS.REGISTER",
    *,
    names: Collection[str] | None = None,
) -> None:
    """Check and register every entry of ``DATASETS.REGISTER``.

    Categories are read at once, so ``MetadataCatalog`` is complete afterwards; the records are
    loaded when ``DatasetCatalog`` is asked, and scenes generated then or by
    :func:`check_available`: prediction needs their class names alone. Registering an equal entry
    again does nothing, so every process of a launcher may call this.

    Args:
        entries: a list of dicts.
        where: they come from, for messages.
        names: of those to register, whose files have to be there; None for all.

    Raises:
        ValueError: an entry is malformed, its name is taken, or its annotations are inconsistent.
        FileNotFoundError: a file or folder is missing; the message has its absolute path.
    """
    if isinstance(entries, (str, Mapping)) or not isinstance(entries, Iterable):
        raise ValueError(f"{where} must be a list of dicts, got {entries!r}")
    for position, raw in enumerate(entries):
        label = f"{where}[{position}]" if where == "DATASETS.REGISTER" else where
        entry = parse_entry(raw, label)
        if (names is None or entry.name in names) and not _is_registered(entry):
            _register(entry.name, open_entry(entry))
            MetadataCatalog.get(entry.name).registered_from = entry


def check_names(dataset_names: Iterable[str], config_key: str) -> None:
    """Check that datasets are registered.

    Raises:
        ValueError: a name is not registered; the message names ``config_key`` and similar names.
    """
    for name in dataset_names:
        if not isinstance(name, str):
            raise ValueError(f"{config_key} must hold names of datasets, got {name!r:.80}")
        if name not in DatasetCatalog:
            similar = similar_names(name, DatasetCatalog.keys(), cutoff=0.8)
            raise ValueError(
                f"{config_key} names '{name}', which is not registered. "
                + (f"Did you mean {' or '.join(map(repr, similar))}? " if similar else "")
                + "Your own data are registered with DATASETS.REGISTER "
                f"\"[{{'name': '{name}', 'json': 'FILE.json', 'images': 'FOLDER'}}]\", "
                "see docs/datasets.md."
            )
        adopt(name)


def check_available(dataset_names: Iterable[str], config_key: str) -> None:
    """Check that datasets are registered and that their annotations are on disk.

    Scenes that are not there yet are generated.

    Args:
        dataset_names: names as in ``DATASETS.TRAIN``.
        config_key: the key they come from, for the message.

    Raises:
        ValueError: there is no name, or a name is not registered.
        FileNotFoundError: the annotations of a dataset are missing.
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
    refuse_lossy_sets(names)
    if len(names) > 1:
        _check_annotated(names)
    model = cfg.MODEL
    fewest = model.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if model.KEYPOINT_ON else 0
    load = functools.partial(get_detection_dataset_dicts, filter_empty=False, min_keypoints=fewest)
    if model.LOAD_PROPOSALS:
        files = cfg.DATASETS.PROPOSAL_FILES_TRAIN
        records = _with_proposals(load, names, files, "DATASETS.PROPOSAL_FILES_TRAIN")
    else:
        records = load(names)
    fit_shapes(cfg, records, names)
    boxes = (a for record in records for a in record.get("annotations", []))
    if not any(box.get("iscrowd", 0) == 0 for box in boxes):
        raise ValueError(
            f"DATASETS.TRAIN ({', '.join(names)}) has {counted(len(records), 'image')} and no "
            "usable box, so there is nothing to learn. Does the json have an 'annotations' list, "
            "and is it that of the training set?"
        )
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = filter_images_with_only_crowd_annotations(records)
    return records


def refuse_lossy_sets(names: Iterable[str]) -> None:
    """Refuse datasets of which more than a tenth of the boxes could not be used.

    Raises:
        ValueError: there is one, and its ``box_format`` was not stated.
    """
    for name in names:
        record = MetadataCatalog.get(name).get("record")  # of others nobody has said it
        if record is not None:
            refuse_lossy(record().notes)


def _check_annotated(names: Sequence[str]) -> None:
    for name in names:
        record = MetadataCatalog.get(name).get("record")  # of others nobody has said it
        if record is not None and not record().annotated:
            raise ValueError(
                f"dataset '{name}' of DATASETS.TRAIN has no annotations ({record().source}), so "
                "its objects would be learned as background. Does the json have an 'annotations' "
                "list, and is it that of the training set?"
            )


def evaluation_records(cfg, dataset_name: str) -> list[dict]:
    """The records of one of ``DATASETS.TEST``, with its proposals where the model takes them.

    Raises:
        ValueError: as :func:`refuse_lossy_sets`.
    """
    refuse_lossy_sets([dataset_name])
    load = functools.partial(get_detection_dataset_dicts, filter_empty=False)
    if not cfg.MODEL.LOAD_PROPOSALS:
        return load([dataset_name])
    names, files = list(cfg.DATASETS.TEST), list(cfg.DATASETS.PROPOSAL_FILES_TEST)
    position = names.index(dataset_name)
    own = files[position : position + 1]
    return _with_proposals(load, [dataset_name], own, "DATASETS.PROPOSAL_FILES_TEST")


def _with_proposals(
    load: Callable[[list[str]], list[dict]], names: Sequence[str], files: Sequence[str], key: str
) -> list[dict]:
    if len(files) != len(names):
        of = counted(len(names), "dataset")
        raise ValueError(f"{key} has {counted(len(files), 'file')} for {of}: name one for each")
    records = []
    for name, path in zip(names, files, strict=True):
        part = load([name])
        add_proposals(part, path)
        records += part
    return records


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


def _register(name: str, source: Source) -> None:
    """Put a dataset into Detectron2's catalogs."""
    _check_images_exist(name, source.pictures)
    DatasetCatalog.register(name, lambda: record_dicts(source.read(), corners=source.corners))
    metadata = MetadataCatalog.get(name)
    metadata.set(record=source.read, **source.metadata)
    categories = source.categories
    if not categories:
        return
    metadata.set(thing_classes=[category.name for category in categories])
    if not source.corners:  # VOC has no ids
        numbers = {category.id: number for number, category in enumerate(categories)}
        metadata.set(thing_dataset_id_to_contiguous_id=numbers)
    with_keypoints = [category for category in categories if category.keypoints]
    if with_keypoints:
        metadata.set(**_keypoint_metadata(with_keypoints[0]))


def _keypoint_metadata(category: Category) -> dict:
    """What Detectron2's keypoint heads and visualizer look up."""
    names = list(category.keypoints)
    return {
        "keypoint_names": names,
        "keypoint_flip_map": flip_map(names),
        "keypoint_connection_rules": [
            (names[a], names[b], (102, 204, 255)) for a, b in category.skeleton
        ],
    }


def _check_images_exist(name: str, paths: Sequence[str | Path]) -> None:
    """Catch a wrong image folder at once; single missing images show when they are read."""
    for path in paths:
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"dataset '{name}': image {path} does not exist. Is the image folder "
                "the one that the file names of the annotations are relative to?"
            )
