"""Region proposals for Detectron2's ``GeneralizedRCNN``, registered with Detectron2 on import."""

from .head import ResObjRPNHead
from .rpn import ResObjRPN

__all__ = ["ResObjRPN", "ResObjRPNHead"]
