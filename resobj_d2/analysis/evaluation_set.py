"""Ground truth and detections as columns of numbers: what every analysis of detections reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from resobj_d2.data.record import Record
from resobj_d2.evaluation.check_detections import check_detections
from resobj_d2.evaluation.ground_truth import image_numbers

__all__ = ["Detections", "EvaluationSet", "Objects", "ranks"]

_KEYS = {"image_id", "category_id", "bbox", "score"}  # of a COCO results json


@dataclass(frozen=True, kw_only=True)
class Objects:
    """N objects of the ground truth, a row each, by image.

    Attributes:
        images: (N,) int64 rows of the images.
        classes: (N,) int64 class numbers.
        boxes: (N, 4) float64 x, y, width, height in pixels.
        areas: (N,) float64 in square pixels; of the mask where there is one.
        crowd: (N,) bool regions: they take any number of detections, which are not judged.
        difficult: (N,) bool objects that need not be found; a detection of one is not judged.
    """

    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @property
    def ignored(self) -> np.ndarray:
        """(N,) bool: crowd regions and difficult objects, which are neither found nor missed."""
        return self.crowd | self.difficult

    def take(self, rows: np.ndarray) -> Objects:
        """The table of these rows."""
        return Objects(**{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)})


@dataclass(frozen=True, kw_only=True)
class Detections:
    """D detections, a row each, by image and then best first.

    Attributes:
        images: (D,) int64 rows of the images.
        classes: (D,) int64 class numbers.
        boxes: (D, 4) float64 x, y, width, height in pixels.
        scores: (D,) float64, finite.
    """

    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> Detections:
        """The table of these rows."""
        return Detections(**{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)})


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """A data set and what one detector found on it.

    Attributes:
        name: of the detector's run, for tables.
        class_names: by class number.
        image_ids: the data set's own, in the order in which COCO's evaluation goes through them.
        files: of the pictures, in the same order.
        sizes: (M, 2) int64 widths and heights in pixels.
        objects, detections: see there.
    """

    name: str
    class_names: list[str]
    image_ids: list[int | str]
    files: list[str]
    sizes: np.ndarray
    objects: Objects
    detections: Detections

    @classmethod
    def of(
        cls,
        record: Record,
        results: Sequence[Mapping],
        *,
        name: str = "",
        limit: int | None = None,
    ) -> EvaluationSet:
        """From a data set and the entries of a COCO results json.

        Args:
            record: of the data set.
            results: ``image_id``, ``category_id``, ``bbox`` and ``score`` each.
            name: of the detector's run; the data set's by default.
            limit: the best detections of an image and class that count; None for all.

        Raises:
            ValueError: an entry is of an unknown image or category, or cannot be judged.
        """
        numbers = image_numbers(record)
        # COCO's evaluation goes through images by number, which decides between equal scores.
        order = np.argsort(list(numbers.values()), kind="stable") if numbers else np.zeros(0, int)
        rows = np.empty_like(order)
        rows[order] = np.arange(len(order))
        by_id = {identity: int(row) for identity, row in zip(record.images.ids, rows, strict=True)}
        name = name or record.name
        sizes = np.stack((record.images.widths, record.images.heights), axis=-1)
        return cls(
            name=name,
            class_names=record.class_names,
            image_ids=[record.images.ids[row] for row in order],
            files=[record.images.files[row] for row in order],
            sizes=sizes.reshape(-1, 2)[order],
            objects=_objects(record, rows),
            detections=_detections(results, by_id, record.class_numbers, name, limit),
        )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def positives(self, ignored: np.ndarray | None = None) -> np.ndarray:
        """(K,) number of objects of each class that are to be found.

        Args:
            ignored: (N,) bool objects that need not be; by default crowd and difficult ones.
        """
        ignored = self.objects.ignored if ignored is None else ignored
        return np.bincount(self.objects.classes[~ignored], minlength=self.num_classes)


def _objects(record: Record, rows: np.ndarray) -> Objects:
    table = record.annotations
    images = rows[table.images] if len(table) else np.zeros(0, np.int64)
    order = np.argsort(images, kind="stable")
    return Objects(
        images=images[order],
        classes=table.classes[order],
        boxes=table.boxes.reshape(-1, 4)[order],
        areas=table.areas[order],
        crowd=table.crowd[order],
        difficult=(table.difficult & ~table.crowd)[order],
    )


def _detections(
    results: Sequence[Mapping],
    image_rows: Mapping[int | str, int],
    class_numbers: Mapping[int, int],
    name: str,
    limit: int | None,
) -> Detections:
    for number, item in enumerate(results):
        if not _is_detection(item):
            raise ValueError(
                f"'{name}': entry {number} of the results is not a detection: it has to have "
                "image_id, category_id, bbox [x, y, width, height] and score, as in a COCO results "
                "json"
            )
    _refuse_unknown(results, "image_id", image_rows, name, "images")
    _refuse_unknown(results, "category_id", class_numbers, name, "categories")
    check_detections(list(results), ["bbox"], name)
    images = np.array([image_rows[item["image_id"]] for item in results], dtype=np.int64)
    scores = np.array([item["score"] for item in results], dtype=np.float64)
    found = Detections(
        images=images,
        classes=np.array([class_numbers[x["category_id"]] for x in results], dtype=np.int64),
        boxes=np.array([item["bbox"] for item in results], dtype=np.float64).reshape(-1, 4),
        scores=scores,
    ).take(np.lexsort((-scores, images)))
    if limit is None or not len(found):
        return found
    return found.take(ranks(found.images, found.classes) < limit)


def _is_detection(item: object) -> bool:
    if not isinstance(item, Mapping) or not _KEYS <= set(item):
        return False
    box = item["bbox"]
    return (
        isinstance(item["image_id"], (int, str))
        and isinstance(item["category_id"], int)
        and isinstance(box, (list, tuple))
        and len(box) == 4
        and all(isinstance(x, (int, float)) for x in (*box, item["score"]))
    )


def _refuse_unknown(
    results: Sequence[Mapping], key: str, known: Mapping, name: str, kind: str
) -> None:
    unknown = list(dict.fromkeys(x[key] for x in results if x[key] not in known))
    if unknown:
        shown = ", ".join(map(repr, unknown[:3])) + (", ..." if len(unknown) > 3 else "")
        raise ValueError(
            f"'{name}': the results have {len(unknown)} {kind} that the data set does not have, "
            f"{shown}: they belong to another data set"
        )


def ranks(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(D,) place of each row among those of its image and class, from 0, in the given order."""
    order = np.lexsort((classes, images))
    group = np.stack((images, classes), axis=-1)[order]
    starts = np.flatnonzero(np.r_[True, (group[1:] != group[:-1]).any(axis=1)][: len(order)])
    lengths = np.diff(np.r_[starts, len(order)])
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order)) - np.repeat(starts, lengths)
    return places
