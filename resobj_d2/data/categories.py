"""The classes of a data set in COCO's form, which also travels in checkpoints."""

from __future__ import annotations

from collections.abc import Iterable

from detectron2.data import MetadataCatalog

__all__ = ["dataset_categories"]


def dataset_categories(dataset_names: Iterable[str]) -> list[dict]:
    """Classes 0..K-1 of the first data set that has names, as ``{"id": ..., "name": ...}``.

    ``id`` is the data set's own; where it has none (VOC), the class number.

    Args:
        dataset_names: registered data sets, for instance ``cfg.DATASETS.TRAIN``.

    Returns:
        In the order of the class numbers; empty where no data set has names.
    """
    for name in dataset_names:
        metadata = MetadataCatalog.get(name)
        names = metadata.get("thing_classes")
        if names:
            numbers = metadata.get("thing_dataset_id_to_contiguous_id") or {}
            ids = {number: identity for identity, number in numbers.items()}
            return [{"id": ids.get(i, i), "name": str(x)} for i, x in enumerate(names)]
    return []
