"""The second stage of Detectron2's ``GeneralizedRCNN``; importing it fills its registries."""

from .box_predictor import ResObjBoxPredictor
from .heads import ResObjCascadeROIHeads, ResObjROIHeads

__all__ = ["ResObjBoxPredictor", "ResObjCascadeROIHeads", "ResObjROIHeads"]
