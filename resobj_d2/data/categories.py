"""The classes of a dataset in COCO's form, which also travels in checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from detectron2.data import MetadataCatalog

__all__ = ["category_names", "check_stored_classes", "dataset_categories", "same_names"]


def dataset_categories(dataset_names: Iterable[str]) -> list[dict]:
    """Classes 0..K-1 of the first dataset that has names, as ``{"id": ..., "name": ...}``.

    ``id`` is the dataset's own; where it has none (VOC), the class number.

    Args:
        dataset_names: registered datasets, for instance ``cfg.DATASETS.TRAIN``.

    Returns:
        In the order of the class numbers; empty where no dataset has names.
    """
    for name in dataset_names:
        metadata = MetadataCatalog.get(name)
        names = metadata.get("thing_classes")
        if names:
            numbers = metadata.get("thing_dataset_id_to_contiguous_id") or {}
            ids = {number: identity for identity, number in numbers.items()}
            return [{"id": ids.get(i, i), "name": str(x)} for i, x in enumerate(names)]
    return []


def category_names(categories: object) -> list[str]:
    """The names of a checkpoint's ``categories``; empty where it has none, or something else."""
    if not isinstance(categories, (list, tuple)):
        return []
    names = [x.get("name") if isinstance(x, dict) else None for x in categories]
    return [str(x) for x in names] if all(isinstance(x, str) for x in names) else []


def check_stored_classes(categories: object, dataset_names: Iterable[str]) -> None:
    """Compare the classes that a checkpoint was trained for with those of datasets.

    Args:
        categories: of the checkpoint; without names everything passes.
        dataset_names: registered datasets; those without names pass.

    Raises:
        ValueError: a dataset has other classes, or another order of them: its figures would be of
            exchanged classes.
    """
    stored = category_names(categories)
    for dataset in dataset_names:
        names = [str(x) for x in MetadataCatalog.get(dataset).get("thing_classes") or []]
        if not stored or not names or same_names(names, stored):
            continue
        same = sorted(map(_plain, names)) == sorted(map(_plain, stored))
        raise ValueError(
            f"the checkpoint was trained for the classes {', '.join(stored)}; dataset '{dataset}' "
            f"has {'them in another order' if same else 'others'}: {', '.join(names)}. Give the "
            f"dataset the checkpoint's classes in its order, e.g. classes: {stored} in its entry "
            "of DATASETS.REGISTER"
        )


def same_names(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two lists name the same classes in the same order.

    Names are the same where they differ in case, blanks, ``_`` and ``-`` alone.
    """
    return list(map(_plain, first)) == list(map(_plain, second))


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ").strip()
