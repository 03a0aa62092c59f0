"""COCO evaluation with Detectron2's interface and a choice of implementation.

Differences from Detectron2's ``COCOEvaluator``:

- the implementation is ``TEST.COCO_BACKEND``;
- ``TEST.GIOU_EVAL`` adds "bbox_giou", the same metrics with boxes matched by GIoU;
- AP at IoU .8 and .9 and AR@100 are reported too;
- no detection at all is AP 0, not NaN (NaN remains where there is no ground truth);
- ground truth that COCO's code would misread is mended first, see :func:`prepare_ground_truth`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Sequence

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation import COCOEvaluator

from ..data.coco_json import is_degenerate
from .backend import CocoBackend, evaluate_detections, load_backend

_TASKS = ("bbox", "segm")


def build_coco_evaluator(cfg, dataset_name: str, output_folder: str | None) -> CocoEvaluator:
    """The evaluator of a data set, with the implementation ``cfg.TEST.COCO_BACKEND``.

    Args:
        cfg: the config.
        dataset_name: a registered data set; one without a COCO json is converted.
        output_folder: for ``coco_instances_results.json`` and Detectron2's other files, or None.
    """
    return CocoEvaluator(
        dataset_name,
        output_dir=output_folder,
        backend_name=cfg.TEST.COCO_BACKEND,
        giou=cfg.TEST.GIOU_EVAL,
    )


def prepare_ground_truth(content: dict) -> tuple[dict, dict]:
    """A copy of a COCO data set that both implementations read alike.

    Annotations are numbered anew from 1, since COCO's code takes a match with annotation 0 for no
    match; image ids become whole numbers where they are not; ``area`` and ``iscrowd`` are filled in
    where missing (area of the box, 0); boxes without a positive finite size are left out.

    Args:
        content: of a COCO json; without "annotations" it stays without.

    Returns:
        The copy, and a dict from original to new image id.
    """
    images = content["images"]
    whole = all(isinstance(image["id"], int) for image in images)
    image_ids = {image["id"]: image["id"] if whole else i + 1 for i, image in enumerate(images)}
    prepared = {
        **content,
        "images": [{**image, "id": image_ids[image["id"]]} for image in images],
        "categories": content.get("categories", []),
    }
    if "annotations" in content:
        kept = [item for item in content["annotations"] if not is_degenerate(item["bbox"])]
        prepared["annotations"] = [
            {
                "iscrowd": 0,
                "area": item["bbox"][2] * item["bbox"][3],
                **item,
                "id": number,
                "image_id": image_ids[item["image_id"]],
            }
            for number, item in enumerate(kept, start=1)
        ]
    return prepared, image_ids


def ground_truth_index(dataset_name: str, backend: CocoBackend) -> tuple[object, dict]:
    """COCO's index over a registered data set, and its image ids by those of the data set."""
    _ensure_json(dataset_name, None)
    with open(MetadataCatalog.get(dataset_name).json_file, encoding="utf-8") as file:
        prepared, image_ids = prepare_ground_truth(json.load(file))
    return backend.index(prepared), image_ids


class CocoEvaluator(COCOEvaluator):
    """Detectron2's evaluator with replaceable implementation and further metrics.

    Args:
        dataset_name: a registered data set with a COCO json, or one that can be converted to it.
        output_dir: folder for results, or None to write none.
        backend_name: one of :data:`.backend.BACKENDS`.
        distributed: whether to gather the predictions of all processes on the main one.
        tasks: "bbox", "segm" or both; by default what the predictions contain.
        giou: whether to evaluate boxes by GIoU too, as "bbox_giou".
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
    ):
        self._backend = load_backend(backend_name)
        self._giou = giou
        _ensure_json(dataset_name, output_dir)
        super().__init__(
            dataset_name,
            tasks=tasks,
            distributed=distributed,
            output_dir=output_dir,
            use_fast_impl=False,
        )
        prepared, self._image_ids = prepare_ground_truth(self._coco_api.dataset)
        self._coco_api = self._backend.index(prepared)

    def _eval_predictions(self, predictions, img_ids=None):
        """Evaluate the gathered predictions; fills ``self._results`` with one dict per task."""
        # Copies: a second call of evaluate must find the class numbers unchanged.
        detections = [dict(item) for entry in predictions for item in entry["instances"]]
        tasks = sorted(self._tasks or self._tasks_from_predictions(detections))
        unknown = set(tasks) - set(_TASKS)
        if unknown:
            raise ValueError(f"the COCO evaluation knows {_TASKS}, not {sorted(unknown)}")
        self._restore_category_ids(detections)
        self._save(detections)
        if not self._do_evaluation:
            self._logger.info("The data set has no annotations: predictions are not evaluated.")
            return
        for item in detections:
            item["image_id"] = self._image_ids[item["image_id"]]
        if img_ids is not None:
            img_ids = [self._image_ids[identity] for identity in img_ids]
        for task in tasks:
            self._results[task] = self._evaluate(detections, task, img_ids)
        if self._giou and "bbox" in tasks:
            self._results["bbox_giou"] = self._evaluate(detections, "bbox", img_ids, giou=True)

    def _evaluate(
        self, detections: list[dict], task: str, image_ids: Sequence[int] | None, giou: bool = False
    ) -> dict:
        """The metrics of one task, logged and returned."""
        rule = " by GIoU" if giou else ""
        self._logger.info(f"Evaluating {task}{rule} with {self._backend.name} ...")
        outcome = evaluate_detections(
            self._backend, self._coco_api, detections, task, image_ids=image_ids, giou=giou
        )
        self._logger.info("\n" + outcome.summary)
        names = self._metadata.get("thing_classes")
        return self._derive_coco_results(outcome.evaluation, task, names)

    def _restore_category_ids(self, detections: list[dict]) -> None:
        """Replace class numbers 0..K-1 by the ids of the json, in place."""
        numbers = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if numbers is None:
            return
        identities = {number: identity for identity, number in numbers.items()}
        for item in detections:
            if item["category_id"] not in identities:
                raise ValueError(
                    f"a prediction has class {item['category_id']}, but dataset "
                    f"'{self._metadata.name}' has {len(identities)} classes: the model was made "
                    "for other classes"
                )
            item["category_id"] = identities[item["category_id"]]

    def _save(self, detections: list[dict]) -> None:
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            self._logger.info(f"Saving results to {path}")
            with open(path, "w") as file:
                json.dump(detections, file)

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        """Detectron2's metrics and AP80, AP90, AR@100, all in percent, NaN without ground truth."""
        results = super()._derive_coco_results(coco_eval, iou_type, class_names=class_names)
        # precision: IoU thresholds, recalls, classes, areas, maximal detections; recall: the same
        # without recalls. Area 0 is "all", the last maximum is 100. -1 marks classes without boxes.
        precision, recall = coco_eval.eval["precision"], coco_eval.eval["recall"]
        thresholds = np.asarray(coco_eval.params.iouThrs)
        extra = {"AR@100": _percent(recall[:, :, 0, -1])}
        for threshold in (0.8, 0.9):
            at_threshold = np.isclose(thresholds, threshold)
            extra[f"AP{round(100 * threshold)}"] = _percent(precision[at_threshold, :, :, 0, -1])
        self._logger.info(
            f"Further results for {iou_type}: "
            + ", ".join(f"{name} {value:.3f}" for name, value in sorted(extra.items()))
        )
        return {**results, **extra}


def _percent(values: np.ndarray) -> float:
    """Mean of the valid entries times 100."""
    valid = values[values > -1]
    return float(100.0 * valid.mean()) if valid.size else float("nan")


def _ensure_json(dataset_name: str, output_dir: str | None) -> None:
    """Give a data set without a COCO json one, in its metadata, where Detectron2 looks for it.

    Detectron2 would do it too, but reuses a file of the same name whatever is in it. Here the name
    contains a hash of the content.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("json_file") is not None:
        return
    content = convert_to_coco_dict(dataset_name)
    del content["info"]  # it holds the time, which would change the hash
    annotations = content.setdefault("annotations", [])
    records = DatasetCatalog.get(dataset_name)
    originals = itertools.chain(*(record.get("annotations", []) for record in records))
    for converted, original in zip(annotations, originals, strict=True):
        if original.get("difficult"):  # VOC's mark: neither found nor missed counts
            converted["iscrowd"] = 1
    text = json.dumps(content)
    folder = output_dir or tempfile.gettempdir()
    os.makedirs(folder, exist_ok=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    path = os.path.join(folder, f"{dataset_name}_{digest}_coco.json")
    if not os.path.exists(path):
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".tmp", delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    metadata.json_file = path
