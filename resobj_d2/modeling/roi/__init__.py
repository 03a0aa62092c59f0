"""RoI heads for Detectron2's ``GeneralizedRCNN``, registered with Detectron2 on import."""

from .box_predictor import ResObjBoxPredictor
from .heads import ResObjCascadeROIHeads, ResObjROIHeads

__all__ = ["ResObjBoxPredictor", "ResObjCascadeROIHeads", "ResObjROIHeads"]
