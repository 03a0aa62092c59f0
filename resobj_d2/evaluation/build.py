"""The evaluator that fits a data set, and Pascal VOC's metric beside COCO's."""

from __future__ import annotations

import logging
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
)

from ..data.voc_xml import voc_metric_obstacle
from .coco import build_coco_evaluator

logger = logging.getLogger(__name__)


class VocEvaluator(PascalVOCDetectionEvaluator):
    """Detectron2's VOC evaluator, its result under "voc" instead of "bbox"."""

    def evaluate(self) -> dict | None:
        """AP (mean over IoU .5 to .95), AP50 and AP75 as VOC computes AP, in percent."""
        results = super().evaluate()
        return None if results is None else {"voc": results["bbox"]}


def build_evaluator(cfg, dataset_name: str, output_folder: str | None) -> DatasetEvaluator:
    """Make the evaluator that a data set's ``evaluator_type`` asks for.

    "coco" gives COCO's metrics under "bbox". "pascal_voc" gives the same, and VOC's under "voc"
    where the XML files have what that needs.

    Raises:
        ValueError: the type is another one.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type")
    if kind not in ("coco", "pascal_voc"):
        raise ValueError(
            f"dataset '{dataset_name}' has evaluator_type {kind!r}; known are 'coco' and "
            "'pascal_voc'. Set it with MetadataCatalog.get(name).evaluator_type = 'coco'"
        )
    coco = build_coco_evaluator(cfg, dataset_name, output_folder)
    if kind == "coco":
        return coco
    obstacle = voc_metric_obstacle(Path(metadata.dirname), metadata.split, dataset_name)
    if obstacle is not None:
        logger.warning(f"dataset '{dataset_name}': no VOC metric, since {obstacle}")
        return coco
    return DatasetEvaluators([coco, VocEvaluator(dataset_name)])
