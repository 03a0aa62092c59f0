"""Ground truth and detections as columns of numbers: what every analysis of detections reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from resobj_d2.data.record import Record

from .dump_file import Dump
from .results_json import check_entries

__all__ = ["Detections", "EvaluationSet", "Objects", "ranks", "with_sizes"]


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
    """A dataset and what one detector found on it.

    Attributes:
        name: of the detector's run, for tables.
        class_names: by class number.
        image_ids: the dataset's own, in the order in which COCO's evaluation goes through them.
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
        """From a dataset and the entries of a COCO results json.

        Args:
            record: of the dataset.
            results: ``image_id``, ``category_id``, ``bbox`` and ``score`` each.
            name: of the detector's run; the dataset's by default.
            limit: the best detections of an image and class that count; None for all.

        Raises:
            ValueError: an entry is of an unknown image or category, or cannot be judged.
        """
        name = name or record.name
        check_entries(results, record, name)
        table = record.annotations
        images = {identity: row for row, identity in enumerate(record.images.ids)}
        classes = record.class_numbers
        return cls(
            name=name,
            class_names=record.class_names,
            image_ids=list(record.images.ids),
            files=list(record.images.files),
            sizes=np.stack((record.images.widths, record.images.heights), axis=-1),
            objects=Objects(
                images=table.images,
                classes=table.classes,
                boxes=table.boxes.reshape(-1, 4),
                areas=table.areas,
                crowd=table.crowd,
                difficult=table.difficult & ~table.crowd,
            ),
            detections=Detections(
                images=np.array([images[x["image_id"]] for x in results], dtype=np.int64),
                classes=np.array([classes[x["category_id"]] for x in results], dtype=np.int64),
                boxes=np.array([x["bbox"] for x in results], dtype=np.float64).reshape(-1, 4),
                scores=np.array([x["score"] for x in results], dtype=np.float64),
            ),
        )._in_order(limit)

    @classmethod
    def of_dump(cls, dump: Dump, *, name: str = "", limit: int | None = None) -> EvaluationSet:
        """From a dump; ``name`` and ``limit`` as in :meth:`of`."""
        images, objects, found = dump.images, dump.objects, dump.detections
        return cls(
            name=name or dump.path.absolute().name,
            class_names=list(dump.class_names),
            image_ids=list(images.ids),
            files=list(images.files),
            sizes=np.stack((images.widths, images.heights), axis=-1),
            objects=Objects(
                images=objects.image_index,
                classes=objects.classes,
                boxes=with_sizes(objects.boxes),
                areas=objects.areas,
                crowd=objects.crowd,
                difficult=objects.ignore & ~objects.crowd,
            ),
            detections=Detections(
                images=found.image_index,
                classes=found.classes,
                boxes=with_sizes(found.boxes),
                scores=found.scores,
            ),
        )._in_order(limit)

    def _in_order(self, limit: int | None) -> EvaluationSet:
        """Images as COCO's evaluation goes through them, which decides between equal scores."""
        ids = self.image_ids
        order = np.arange(len(ids))
        if all(isinstance(identity, int) for identity in ids):
            order = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
        rows = np.empty_like(order)
        rows[order] = np.arange(len(order))
        objects = dataclasses.replace(self.objects, images=rows[self.objects.images])
        found = dataclasses.replace(self.detections, images=rows[self.detections.images])
        return dataclasses.replace(
            self,
            image_ids=[ids[row] for row in order],
            files=[self.files[row] for row in order],
            sizes=self.sizes.reshape(-1, 2)[order],
            objects=objects.take(np.argsort(objects.images, kind="stable")),
            detections=_best_first(found, limit),
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


def with_sizes(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) corners to x, y, width, height."""
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)


def _best_first(found: Detections, limit: int | None) -> Detections:
    """By image and falling score, at most ``limit`` of each image and class."""
    found = found.take(np.lexsort((-found.scores, found.images)))
    if limit is None or not len(found):
        return found
    return found.take(ranks(found.images, found.classes) < limit)


def ranks(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(D,) place of each row among those of its image and class, from 0, in the given order."""
    order = np.lexsort((classes, images))
    group = np.stack((images, classes), axis=-1)[order]
    starts = np.flatnonzero(np.r_[True, (group[1:] != group[:-1]).any(axis=1)][: len(order)])
    lengths = np.diff(np.r_[starts, len(order)])
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order)) - np.repeat(starts, lengths)
    return places
