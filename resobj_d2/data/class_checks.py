"""Whether a model's number of classes and the classes of its datasets agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from resobj_d2.process import counted

from .categories import same_names
from .entries import VocEntry
from .voc_xml import VOC_CLASSES, foreign_class, named_classes

__all__ = ["check_num_classes"]

_SHOWN = 20


def check_num_classes(num_classes: Mapping[str, int], dataset_names: Iterable[str]) -> None:
    """Compare the class counts of the model's heads with those of its datasets.

    Args:
        num_classes: config key to value, for instance ``{"MODEL.DENSE.NUM_CLASSES": 80}``.
        dataset_names: registered datasets for training and testing.

    Raises:
        ValueError: a count differs, or the classes of two datasets do; the message names key,
            dataset, classes and the remedy.
    """
    found = {name: _class_names(name) for name in dict.fromkeys(dataset_names)}
    classes = {name: names for name, names in found.items() if names is not None}
    for name, names in classes.items():
        first, expected = next(iter(classes.items()))
        if not same_names(names, expected):
            _refuse_foreign_classes(classes)
            raise ValueError(_different(first, expected, name, names))
    for name, names in classes.items():
        for key, value in num_classes.items():
            if value != len(names):
                _refuse_foreign_classes(classes)
                raise ValueError(
                    f"{key} is {value}, but dataset '{name}' has {counted(len(names), 'class')}: "
                    f"{_listed(names)}. Set it in the config file or add to the command line: "
                    f"{key} {len(names)}{_without_objects(classes)}"
                )


def _class_names(dataset_name: str) -> list[str] | None:
    """Class names of a dataset, which may have to be loaded for it; None if it has none."""
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("thing_classes") is None and metadata.get("registered_from") is None:
        DatasetCatalog.get(dataset_name)  # register_coco_instances sets the classes when it loads
    classes = metadata.get("thing_classes")
    return None if classes is None else list(classes)


def _refuse_foreign_classes(dataset_names: Iterable[str]) -> None:
    """Without 'classes' a folder of VOC has VOC's, which its files may know nothing of."""
    for name in dataset_names:
        entry = MetadataCatalog.get(name).get("registered_from")
        if isinstance(entry, VocEntry) and entry.classes is None:
            present = named_classes(Path(MetadataCatalog.get(name).dirname), entry.split, name)
            foreign = [x for x in present if x not in VOC_CLASSES]
            if foreign:
                raise ValueError(f"dataset '{name}': {foreign_class(foreign[0], present)}")


def _different(first: str, expected: Sequence[str], name: str, names: Sequence[str]) -> str:
    text = (
        f"datasets '{first}' and '{name}' have different classes, so class numbers mean different "
        f"things: {_listed(expected)} and {_listed(names)}. "
    )
    alone = {
        first: [x for x in expected if x not in names],
        name: [x for x in names if x not in expected],
    }
    empty = {owner: _empty_classes(owner) for owner in alone}
    shared = [x for x in expected if x in names]
    for owner, own in alone.items():
        unused = [x for x in own if x in empty[owner]]
        if unused:
            text += f"Dataset '{owner}' alone has {_listed(unused)}, without any object. "
    text += "Give both the same 'classes' in their entries of DATASETS.REGISTER"
    # What leaves no object out.
    if shared and all(set(own) <= set(empty[owner]) for owner, own in alone.items()):
        text += f": classes: [{', '.join(shared)}]"
    return text


def _without_objects(classes: Mapping[str, Sequence[str]]) -> str:
    """Says which classes no dataset has objects of; "" where there is none, or it is not known."""
    names = next(iter(classes.values()))
    unused = [x for x in names if all(x in _empty_classes(name) for name in classes)]
    if not unused or len(unused) == len(names):
        return ""
    used = [x for x in names if x not in unused]
    return (
        f". There is no object of {_listed(unused)}: 'classes' in the entries of DATASETS.REGISTER "
        f"leaves that out, classes: [{', '.join(used)}] and {len(used)}"
    )


def _empty_classes(name: str) -> list[str]:
    """Classes of an entry of ``DATASETS.REGISTER`` that it has no object of."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("registered_from") is None or metadata.get("generate"):
        return []
    record = metadata.record()
    if not record.annotated:
        return []
    counts = np.bincount(record.annotations.classes, minlength=len(record.categories))
    return [x for x, count in zip(record.class_names, counts, strict=True) if not count]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
