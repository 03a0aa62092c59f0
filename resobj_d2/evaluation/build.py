"""The evaluator that fits a dataset, and Pascal VOC's metric beside COCO's."""

from __future__ import annotations

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from .coco import build_coco_evaluator
from .voc import VocEvaluator

__all__ = ["build_evaluator", "check_evaluators", "result_names"]


def check_evaluators(cfg) -> None:
    """Refuse, in front of a training, datasets of ``DATASETS.TEST`` that cannot be evaluated.

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
    """Make the evaluator that a dataset's ``evaluator_type`` asks for.

    "coco" gives COCO's metrics under "bbox", "segm" and "keypoints" as the model has them.
    "pascal_voc" gives the same, and VOC's under "voc".

    Raises:
        ValueError: the type is another one.
    """
    kind = _evaluator_type(dataset_name)
    coco = build_coco_evaluator(cfg, dataset_name, output_folder)
    return coco if kind == "coco" else DatasetEvaluators([coco, VocEvaluator(dataset_name)])


def result_names(cfg, dataset_name: str) -> list[str]:
    """Paths of the results that an evaluation of a dataset has, such as "bbox/AP50".

    Those of proposals are among them whether or not the model gives any. Empty for a dataset
    without annotations.

    Raises:
        ValueError: as :func:`build_evaluator`.
    """
    kind = _evaluator_type(dataset_name)
    names = build_coco_evaluator(cfg, dataset_name, None).result_names()
    return names if kind == "coco" else names + VocEvaluator(dataset_name).result_names()
