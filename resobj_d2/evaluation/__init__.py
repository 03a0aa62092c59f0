"""Evaluators: COCO's metrics with a choice of implementation, and Pascal VOC's."""

from .build import build_evaluator, check_evaluators, result_names
from .coco import CocoEvaluator, build_coco_evaluator

__all__ = [
    "CocoEvaluator",
    "build_coco_evaluator",
    "build_evaluator",
    "check_evaluators",
    "result_names",
]
