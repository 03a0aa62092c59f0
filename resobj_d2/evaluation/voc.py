"""Pascal VOC's metric on the record of a dataset (Everingham et al., IJCV 2010, section 4.2).

Boxes count as in VOC: with both end pixels, an overlap has to exceed the threshold, a detection is
compared with the object that it overlaps most, and further detections of an object are wrong. The
mean is over the classes that have objects in the dataset. Detections keep their precision, which
VOC's result files round to a tenth of a pixel and a thousandth of a score.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.record import Record
from resobj_d2.process.console import FILE_ONLY

from .gather import gather_in_parts

__all__ = ["VocEvaluator", "voc_average_precision"]

logger = logging.getLogger(__name__)

_THRESHOLDS = tuple(range(50, 100, 5))  # of IoU, in percent


class VocEvaluator(DatasetEvaluator):
    """AP (mean over IoU .5 to .95), AP50, AP75 and the AP50 of each class, in percent, as "voc".

    Args:
        dataset_name: a registered dataset; ``year`` 2007 of its metadata asks for the AP of 11
            points.
        distributed: whether to gather the predictions of all processes on the main one.
    """

    def __init__(self, dataset_name: str, *, distributed: bool = True) -> None:
        self._record = dataset_record(dataset_name)
        self._name = dataset_name
        self._distributed = distributed
        self._eleven_points = MetadataCatalog.get(dataset_name).get("year") == 2007
        self.reset()

    def result_names(self) -> list[str]:
        """Paths of the results that an evaluation has."""
        classes = [f"AP50-{name}" for name in self._record.class_names]
        return [f"voc/{name}" for name in ("AP", "AP50", "AP75", *classes)]

    def reset(self) -> None:
        """Forget all predictions."""
        self._found: list[tuple[object, np.ndarray]] = []

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """Take the predictions of a batch, in Detectron2's form."""
        for entry, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            columns = [
                instances.pred_boxes.tensor.double().numpy().reshape(-1, 4),
                instances.scores.double().numpy()[:, None],
                instances.pred_classes.double().numpy()[:, None],
            ]
            self._found.append((entry["image_id"], np.hstack(columns)))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """The metric, on the main process; {} on others."""
        found = self._found
        if self._distributed:
            found = gather_in_parts(found)
            if not comm.is_main_process():
                return {}
        aps = voc_average_precision(self._record, found, eleven_points=self._eleven_points)
        present = ~np.isnan(aps).all(axis=0)
        means = 100 * aps[:, present].mean(axis=1) if present.any() else np.full(len(aps), np.nan)
        by_threshold = dict(zip(_THRESHOLDS, means.tolist(), strict=True))
        results = {"AP": float(means.mean()), "AP50": by_threshold[50], "AP75": by_threshold[75]}
        names = self._record.class_names
        results |= {f"AP50-{name}": 100 * float(aps[0, i]) for i, name in enumerate(names)}
        points = "11 points" if self._eleven_points else "the area under the curve"
        logger.info(
            "VOC's metric on '%s' (%s): AP %.3f, AP50 %.3f, AP75 %.3f over %d of %d classes",
            *(self._name, points, results["AP"], results["AP50"], results["AP75"]),
            *(int(present.sum()), len(names)),
            extra=FILE_ONLY,
        )
        return {"voc": results}


def voc_average_precision(
    record: Record, found: Sequence[tuple[object, np.ndarray]], *, eleven_points: bool
) -> np.ndarray:
    """VOC's AP of every class at IoU .5, .55, ... .95.

    Args:
        record: the ground truth; crowd regions are left out, difficult objects do not count.
        found: image id, and (detections, 6) XYXY, score and class number.
        eleven_points: VOC 2007's mean over 11 recalls instead of the area.

    Returns:
        (10, classes) from 0 to 1; NaN for classes without objects.
    """
    rows = {identity: row for row, identity in enumerate(record.images.ids)}
    truth: dict[tuple[int, int], list[int]] = defaultdict(list)
    table = record.annotations
    for row in np.flatnonzero(~table.crowd).tolist():
        truth[int(table.images[row]), int(table.classes[row])].append(row)
    corners = np.hstack([table.boxes[:, :2], table.boxes[:, :2] + table.boxes[:, 2:]])
    aps = np.full((len(_THRESHOLDS), len(record.categories)), np.nan)
    for number in range(len(record.categories)):
        positives = int(((table.classes == number) & ~table.crowd & ~table.difficult).sum())
        if not positives:
            continue
        scores, overlaps, objects = _matches(found, rows, number, truth, corners)
        order = np.argsort(-scores, kind="stable")
        overlaps, objects = overlaps[order], objects[order]
        easy = np.append(~table.difficult, True)  # -1, no object, is wrong and counts
        for t, threshold in enumerate(_THRESHOLDS):
            hit = overlaps > threshold / 100
            first = np.zeros(len(hit), dtype=bool)
            first[np.flatnonzero(hit)[np.unique(objects[hit], return_index=True)[1]]] = True
            counted = ~hit | easy[objects]
            right = (first & hit)[counted]
            aps[t, number] = _average(right, positives, eleven_points)
    return aps


def _matches(
    found: Sequence[tuple[object, np.ndarray]],
    rows: Mapping,
    number: int,
    truth: Mapping[tuple[int, int], list[int]],
    corners: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every detection of a class its score, and IoU and row of the object it overlaps most."""
    scores, overlaps, objects = [np.zeros(0)], [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    for identity, detections in found:
        chosen = detections[detections[:, 5] == number]
        scores.append(chosen[:, 4])
        candidates = truth.get((rows[identity], number), [])
        if not candidates or not len(chosen):
            overlaps.append(np.zeros(len(chosen)))
            objects.append(np.full(len(chosen), -1))
            continue
        iou = _iou(chosen[:, :4], corners[candidates])
        best = iou.argmax(axis=1)
        overlaps.append(iou[np.arange(len(best)), best])
        objects.append(np.asarray(candidates)[best])
    return np.concatenate(scores), np.concatenate(overlaps), np.concatenate(objects)


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N, M) of XYXY boxes. VOC's pixels with both ends from 1 are these coordinates from 0."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    sizes = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    return shared / (sizes[0][:, None] + sizes[1][None, :] - shared)


def _average(right: np.ndarray, positives: int, eleven_points: bool) -> float:
    """AP of detections in the order of their scores."""
    hits = np.cumsum(right)
    recall = hits / positives
    precision = hits / np.arange(1, len(right) + 1)
    if eleven_points:
        best = [precision[recall >= r].max(initial=0.0) for r in np.arange(0.0, 1.1, 0.1)]
        return float(np.mean(best))
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * precision[1:]).sum())
