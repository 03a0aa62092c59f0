"""The evaluator that fits a data set, and Pascal VOC's metric beside COCO's."""

from __future__ import annotations

import logging
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
)

from ..data.voc_xml import voc_metric_obstacle
from .coco import build_coco_evaluator

__all__ = ["VocEvaluator", "build_evaluator", "check_evaluators"]

logger = logging.getLogger(__name__)


class VocEvaluator(PascalVOCDetectionEvaluator):
    """Detectron2's VOC evaluator, its result under "voc" instead of "bbox"."""

    def evaluate(self) -> dict | None:
        """AP (mean over IoU .5 to .95), AP50 and AP75 as VOC computes AP, in percent."""
        results = super().evaluate()
        return None if results is None else {"voc": results["bbox"]}


def check_evaluators(cfg) -> None:
    """Refuse, in front of a training, data sets of ``DATASETS.TEST`` that cannot be evaluated.

    Raises:
        ValueError: as :func:`build_evaluator`.
    """
    for name in cfg.DATASETS.TEST:
        _evaluator_type(name)


def _evaluator_type(dataset_name: str) -> str:
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in ("coco", "pascal_voc"):
        raise ValueError(
            f"dataset '{dataset_name}' has evaluator_type {kind!r}; known are 'coco' and "
            "'pascal_voc'. Override Trainer.build_evaluator for another metric, take it out of "
            "DATASETS.TEST, or, where COCO's metric suits it, set "
            "MetadataCatalog.get(name).evaluator_type = 'coco'"
        )
    return kind


def build_evaluator(cfg, dataset_name: str, output_folder: str | None) -> DatasetEvaluator:
    """Make the evaluator that a data set's ``evaluator_type`` asks for.

    "coco" gives COCO's metrics under "bbox". "pascal_voc" gives the same, and VOC's under "voc"
    where the XML files have what that needs.

    Raises:
        ValueError: the type is another one.
    """
    kind = _evaluator_type(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    if cfg.MODEL.KEYPOINT_ON:  # whose metric is Detectron2's own
        return COCOEvaluator(dataset_name, output_dir=output_folder, use_fast_impl=False)
    coco = build_coco_evaluator(cfg, dataset_name, output_folder)
    if kind == "coco":
        return coco
    obstacle = voc_metric_obstacle(Path(metadata.dirname), metadata.split, dataset_name)
    if obstacle is not None:
        logger.warning(f"dataset '{dataset_name}': no VOC metric, since {obstacle}")
        return coco
    return DatasetEvaluators([coco, VocEvaluator(dataset_name)])
