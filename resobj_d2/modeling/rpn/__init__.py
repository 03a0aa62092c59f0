"""Region proposals in Detectron2's ``GeneralizedRCNN``; importing it fills its registries."""

from .head import ResObjRPNHead
from .rpn import ResObjRPN

__all__ = ["ResObjRPN", "ResObjRPNHead"]
