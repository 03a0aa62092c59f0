"""What the classes of a predictor are called."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from resobj_d2.config import class_counts
from resobj_d2.data.categories import dataset_categories

__all__ = ["Classes", "choose_classes"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classes:
    """Classes 0..K-1.

    Attributes:
        names: by class number; empty where none are known.
        ids: class number to the dataset's id; empty where ids are the class numbers.
    """

    names: list[str]
    ids: dict[int, int]


def choose_classes(
    cfg: CfgNode, stored: Sequence[dict], class_names: Sequence[str] | None
) -> Classes:
    """The names that the caller gives, else the dataset's, else the checkpoint's.

    Where the dataset of ``DATASETS.TEST`` and the checkpoint disagree, the checkpoint is right:
    it was written by the training.

    Args:
        stored: the checkpoint's classes as ``{"id": ..., "name": ...}``; empty without.
        class_names: the caller's; None without.

    Raises:
        ValueError: ``class_names`` are not as many as the model has classes.
    """
    test = list(cfg.DATASETS.TEST)[:1]
    numbers = {}
    if test:
        numbers = MetadataCatalog.get(test[0]).get("thing_dataset_id_to_contiguous_id") or {}
    ids = {number: identity for identity, number in numbers.items()}
    names = [category["name"] for category in dataset_categories(test)]
    stored = _usable(stored, cfg)
    stored_names = [category["name"] for category in stored]
    if stored and stored_names != names:
        if names:
            logger.warning(
                "the checkpoint was trained for the classes %s, but dataset '%s' has %s: "
                "the checkpoint's are used",
                ", ".join(stored_names),
                test[0],
                ", ".join(names),
            )
        names = stored_names
        ids = {number: category["id"] for number, category in enumerate(stored)}
    if class_names is not None:
        names = [str(name) for name in class_names]
        for key, count in class_counts(cfg).items():
            if count != len(names):
                raise ValueError(f"{len(names)} class_names were given, but {key} is {count}")
    if not names:
        logger.warning(
            "neither DATASETS.TEST nor the checkpoint names the classes: they are called "
            "'class 0', 'class 1', ..."
        )
    return Classes(names, ids)


def _usable(stored: object, cfg: CfgNode) -> Sequence[dict]:
    """The checkpoint's classes, or none where another program keeps something else there."""
    is_list = isinstance(stored, (list, tuple)) and all(
        isinstance(x, dict) and isinstance(x.get("name"), str) and isinstance(x.get("id"), int)
        for x in stored
    )
    if not is_list or any(len(stored) != count for count in class_counts(cfg).values() if stored):
        logger.warning("the checkpoint's 'categories' are not the classes of its model: ignored")
        return []
    return stored
