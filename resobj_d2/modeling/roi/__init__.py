"""RoI heads for Detectron2's ``GeneralizedRCNN``, registered with Detectron2 on import."""

from .box_predictor import ResObjBoxPredictor
from .heads import ResObjCascadeROIHeads, ResObjROIHeads
from .mask_heads import MLPMaskHead, SoftmaxMaskHead

__all__ = [
    "MLPMaskHead",
    "ResObjBoxPredictor",
    "ResObjCascadeROIHeads",
    "ResObjROIHeads",
    "SoftmaxMaskHead",
]
