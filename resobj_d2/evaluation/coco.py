"""COCO evaluation of a dataset's record, with a choice of implementation.

Differences from Detectron2's ``COCOEvaluator``:

- the implementation is ``TEST.COCO_BACKEND``, and the ground truth is the record that training and
  the other commands read (:mod:`resobj_d2.data.record`);
- as many detections count as the model gives (``TEST.DETECTIONS_PER_IMAGE``), not 100;
- ``TEST.GIOU_EVAL`` adds "bbox_giou", the same metrics with boxes matched by GIoU;
- AP at every threshold, AP50 of every class and the average recalls are results too;
- no detection at all is AP 0, not NaN (NaN remains where there is no ground truth);
- detections that the implementations would judge differently, or wrongly, are refused.
"""

from __future__ import annotations

import copy
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import _evaluate_box_proposals, instances_to_coco_json
from detectron2.utils import comm
from tabulate import tabulate

from resobj_d2.data.catalog import dataset_record
from resobj_d2.process import agreeing, counted, replacing
from resobj_d2.process.console import FILE_ONLY

from .backend import CocoOutcome, evaluate_detections, load_backend
from .check_detections import check_detections
from .gather import gather_in_parts
from .ground_truth import category_numbers, ground_truth, image_numbers
from .metrics import CocoFigures

__all__ = ["CocoEvaluator", "build_coco_evaluator"]

logger = logging.getLogger(__name__)

_TASKS = ("bbox", "segm", "keypoints")
_COCO_LIMIT = 100  # detections that count in COCO's own protocol; 20 for keypoints
_COCO_KEYPOINT_LIMIT = 20
_PROPOSALS = (100, 1000)  # numbers of them at which recall is measured
_AREAS = {"all": "", "small": "s", "medium": "m", "large": "l"}


def build_coco_evaluator(cfg, dataset_name: str, output_folder: str | None) -> CocoEvaluator:
    """The evaluator of a dataset, with the implementation ``cfg.TEST.COCO_BACKEND``.

    Args:
        cfg: the config.
        dataset_name: a registered dataset.
        output_folder: for ``coco_instances_results.json`` and ``instances_predictions.pth``, or
            None.
    """
    tasks = ["bbox", "segm"] if cfg.MODEL.MASK_ON else ["bbox"]
    if cfg.MODEL.KEYPOINT_ON:
        tasks.append("keypoints")
    return CocoEvaluator(
        dataset_name,
        output_dir=output_folder,
        backend_name=cfg.TEST.COCO_BACKEND,
        tasks=tasks,
        giou=cfg.TEST.GIOU_EVAL,
        detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        keypoint_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
    )


class CocoEvaluator(DatasetEvaluator):
    """COCO's metrics of boxes, masks and keypoints.

    Args:
        dataset_name: a registered dataset.
        output_dir: folder for results, or None to write none.
        backend_name: one of :data:`.backend.BACKENDS`.
        distributed: whether to gather the predictions of all processes on the main one.
        tasks: of "bbox", "segm" and "keypoints"; by default what the predictions contain.
        giou: whether to evaluate boxes by GIoU too, as "bbox_giou".
        detections_per_image: how many the model gives at most; so many of each class count. -1 for
            as many as there are.
        keypoint_sigmas: of the keypoints' similarity; COCO's for persons by default.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        output_dir: str | None = None,
        backend_name: str = "auto",
        distributed: bool = True,
        tasks: Sequence[str] | None = None,
        giou: bool = False,
        detections_per_image: int = _COCO_LIMIT,
        keypoint_sigmas: Sequence[float] = (),
    ):
        unknown = set(tasks or ()) - set(_TASKS)
        if unknown:
            raise ValueError(f"the COCO evaluation knows {_TASKS}, not {sorted(unknown)}")
        self._backend = load_backend(backend_name)
        self._name = dataset_name
        self._output_dir = output_dir
        self._distributed = distributed
        self._tasks = tasks
        self._giou = giou
        self._limit = detections_per_image
        self._sigmas = list(keypoint_sigmas)
        self._record = dataset_record(dataset_name)
        self._images = image_numbers(self._record)
        self._categories = category_numbers(self._record)
        self._category_ids = self._read_category_ids()
        self._indices: dict[str, object] = {}
        self.reset()

    def _read_category_ids(self) -> dict[int, int]:
        """Class numbers of the model to category ids; empty without categories."""
        numbers = MetadataCatalog.get(self._name).get("thing_dataset_id_to_contiguous_id")
        numbers = self._record.class_numbers if numbers is None else numbers
        return {number: identity for identity, number in numbers.items()}

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions: list[dict] = []

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """Take the predictions of a batch.

        Args:
            inputs: with ``image_id``.
            outputs: Detectron2's, with ``instances`` or ``proposals``.
        """
        for entry, output in zip(inputs, outputs, strict=True):
            prediction = {"image_id": entry["image_id"]}
            if "instances" in output:
                instances = output["instances"].to("cpu")
                prediction["instances"] = instances_to_coco_json(instances, entry["image_id"])
            if "proposals" in output:
                prediction["proposals"] = output["proposals"].to("cpu")
            if len(prediction) > 1:
                self._predictions.append(prediction)

    def evaluate(self, img_ids: Sequence | None = None) -> dict[str, dict[str, float]]:
        """The metrics of every task, on the main process; {} on others and without predictions.

        Args:
            img_ids: restrict the evaluation to these images.

        Raises:
            ValueError: predictions that cannot be judged; see :mod:`.check_detections`.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = gather_in_parts(predictions)
            if not comm.is_main_process():
                return {}
        if not predictions:
            logger.warning("the evaluation of '%s' got no predictions", self._name)
            return {}
        self._check_images(predictions)
        if self._output_dir:
            os.makedirs(self._output_dir, exist_ok=True)
            path = os.path.join(self._output_dir, "instances_predictions.pth")
            with replacing(path, binary=True) as file:
                torch.save(predictions, file)
        results: dict[str, dict[str, float]] = {}
        if "proposals" in predictions[0]:
            results |= self._evaluate_proposals(predictions)
        if "instances" in predictions[0]:
            results |= self._evaluate_instances(predictions, img_ids)
        return copy.deepcopy(results)

    def _check_images(self, predictions: Sequence[dict]) -> None:
        counts = Counter(prediction["image_id"] for prediction in predictions)
        unknown = [identity for identity in counts if identity not in self._images]
        if unknown:
            raise ValueError(
                f"there are predictions of {counted(len(unknown), 'image')} that dataset "
                f"'{self._name}' does not have, for instance {', '.join(map(repr, unknown[:3]))}"
            )
        twice = [identity for identity, count in counts.items() if count > 1]
        if twice:
            raise ValueError(
                f"{counted(len(twice), 'image')} of dataset '{self._name}' got predictions from "
                f"two calls, for instance {', '.join(map(repr, twice[:3]))}: call reset() before a "
                "new pass"
            )
        missing = len(self._images) - len(counts)
        if missing:
            logger.warning(
                "'%s' has %s (of %d) that the model was not shown; the objects there count as "
                "missed",
                self._name,
                counted(missing, "image"),
                len(self._images),
            )

    def _evaluate_instances(
        self, predictions: Sequence[dict], img_ids: Sequence | None
    ) -> dict[str, dict[str, float]]:
        # Copies: a second call of evaluate must find the class numbers unchanged.
        detections = [dict(item) for entry in predictions for item in entry["instances"]]
        tasks = self._tasks or _tasks_of(detections)
        check_detections(detections, tasks, self._name)
        self._restore_category_ids(detections)
        self._save(detections)
        if not self._record.annotated:
            logger.info("'%s' has no annotations: predictions are not evaluated", self._name)
            return {}
        self._warn_of_full_images()
        for item in detections:
            item["image_id"] = self._images[item["image_id"]]
            item["category_id"] = self._categories.get(item["category_id"], -1)  # of no object
        images = None if img_ids is None else [self._images[identity] for identity in img_ids]
        results = {}
        for task in sorted(tasks, key=_TASKS.index):
            results[task] = self._task(detections, task, images)
        if self._giou and "bbox" in tasks:
            results["bbox_giou"] = self._task(detections, "bbox", images, giou=True)
        return results

    def result_names(self) -> list[str]:
        """Paths of the results that an evaluation of ``tasks`` has, such as "bbox/AP50"."""
        if not self._record.annotated:
            return []
        classes = self._names_by_id()
        tables = {task: task for task in self._tasks or ()}
        if self._giou:
            tables["bbox_giou"] = "bbox"
        names = []
        for table, task in tables.items():
            figures = CocoFigures.of_nothing(
                limits=self._limits(task, []),
                category_ids=list(classes),
                keypoints=task == "keypoints",
            )
            names += [f"{table}/{name}" for name in figures.results(classes)]
        return names + [f"box_proposals/AR{s}@{n}" for n in _PROPOSALS for s in _AREAS.values()]

    def _warn_of_full_images(self) -> None:
        """More objects than detections: recall cannot reach 1, and it is not the model's fault."""
        table = self._record.annotations
        counts = np.bincount(table.images[~table.crowd], minlength=len(self._images))
        full = np.flatnonzero(counts > self._limit) if self._limit >= 0 else []
        if len(full):
            most = int(counts.argmax())
            logger.warning(
                "'%s' has %s with more objects than TEST.DETECTIONS_PER_IMAGE %d, so not all can "
                "be found; the most, %d, has image %r",
                self._name,
                counted(len(full), "image"),
                self._limit,
                counts[most],
                self._record.images.ids[most],
            )

    def _task(
        self, detections: list[dict], task: str, images: Sequence[int] | None, giou: bool = False
    ) -> dict[str, float]:
        """The metrics of one task, logged and returned."""
        if task == "keypoints":
            self._check_keypoints(detections)
        if task not in self._indices:
            self._indices[task] = self._backend.index(ground_truth(self._record, task))
        outcome = evaluate_detections(
            self._backend,
            self._indices[task],
            detections,
            task,
            image_ids=images,
            giou=giou,
            limits=self._limits(task, detections),
            keypoint_sigmas=self._sigmas if task == "keypoints" else (),
        )
        results = outcome.figures.results(self._names_by_id())
        self._log(task, " by GIoU" if giou else "", outcome, results)
        return results

    def _names_by_id(self) -> dict[int, str]:
        """Of the categories in the ground truth, in the order of the class numbers."""
        names = MetadataCatalog.get(self._name).get("thing_classes") or self._record.class_names
        known = self._categories
        pairs = sorted(self._category_ids.items())
        return {
            known[i]: str(names[number])
            for number, i in pairs
            if i in known and number < len(names)
        }

    def _limits(self, task: str, detections: Sequence[dict]) -> list[int]:
        """How many detections of an image and class count."""
        limit = self._limit
        if limit < 0:
            counts = Counter(item["image_id"] for item in detections)
            limit = max([_COCO_LIMIT, *counts.values()])
        if task == "keypoints":
            return [limit if limit > _COCO_LIMIT else _COCO_KEYPOINT_LIMIT]
        return sorted({1, min(10, limit), min(_COCO_LIMIT, limit), limit})

    def _check_keypoints(self, detections: Sequence[dict]) -> None:
        truth = {len(p) for p in self._record.annotations.keypoints if p is not None}
        found = {len(item["keypoints"]) // 3 for item in detections}
        sigmas = len(self._sigmas) or 17  # COCO's persons
        if len(truth | found | {sigmas}) > 1:
            raise ValueError(
                f"dataset '{self._name}' has {sorted(truth)} keypoints for an object, the model "
                f"predicts {sorted(found)}, and TEST.KEYPOINT_OKS_SIGMAS is for {sigmas}: these "
                "have to agree"
            )

    def _log(
        self, task: str, rule: str, outcome: CocoOutcome, results: Mapping[str, float]
    ) -> None:
        head = f"Results of {task}{rule} on '{self._name}' with {self._backend.name}"
        limit = outcome.figures.limits[-1]
        if task != "keypoints" and limit != _COCO_LIMIT:
            count = agreeing(limit, "count")
            head += f"; {counted(limit, 'detection')} of an image and class {count}, {_COCO_LIMIT}"
            head += " in COCO's own"
        _note("%s:\n%s", head, outcome.summary)
        overall = {key: value for key, value in results.items() if "-" not in key}
        _note("%s", ", ".join(f"{key} {value:.3f}" for key, value in overall.items()))
        classes = [key[3:] for key in results if key.startswith("AP-")]
        if classes:
            rows = [(name, results[f"AP-{name}"], results[f"AP50-{name}"]) for name in classes]
            table = tabulate(rows, headers=["class", "AP", "AP50"], floatfmt=".3f")
            _note("%s of each class%s:\n%s", task, rule, table)

    def _restore_category_ids(self, detections: list[dict]) -> None:
        """Replace class numbers 0..K-1 by the ids of the dataset, in place."""
        if not self._category_ids:
            return
        for item in detections:
            if item["category_id"] not in self._category_ids:
                raise ValueError(
                    f"a prediction has class {item['category_id']}, but dataset '{self._name}' "
                    f"has {counted(len(self._category_ids), 'class')}: the model was made for "
                    "other classes"
                )
            item["category_id"] = self._category_ids[item["category_id"]]

    def _save(self, detections: list[dict]) -> None:
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            with replacing(path) as file:
                json.dump(detections, file)
            _note("Results are in %s", path)

    def _evaluate_proposals(self, predictions: Sequence[dict]) -> dict[str, dict[str, float]]:
        """Average recall of proposals, by Detectron2's function."""
        if not self._record.annotated:
            return {}
        index = self._backend.index(ground_truth(self._record, "bbox"))
        moved = [{**p, "image_id": self._images[p["image_id"]]} for p in predictions]
        results = {}
        for limit in _PROPOSALS:
            for area, suffix in _AREAS.items():
                found = _evaluate_box_proposals(moved, index, area=area, limit=limit)
                results[f"AR{suffix}@{limit}"] = 100 * float(found["ar"])
        _note(
            "Proposals on '%s': %s",
            self._name,
            ", ".join(f"{key} {value:.3f}" for key, value in results.items()),
        )
        return {"box_proposals": results}


def _note(text: str, *values: object) -> None:
    """For the log file; the console shows the tables of the run."""
    logger.info(text, *values, extra=FILE_ONLY)


def _tasks_of(detections: Sequence[dict]) -> list[str]:
    found = {"bbox": True}
    found["segm"] = any("segmentation" in item for item in detections)
    found["keypoints"] = any("keypoints" in item for item in detections)
    return [task for task, present in found.items() if present]
