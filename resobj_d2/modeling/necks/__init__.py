"""Necks, the layers between backbone and heads, registered as Detectron2 backbones."""

from .balanced_fpn import BalancedFeaturePyramid, NonLocalRefine, build_balanced_fpn_backbone
from .bifpn import BiFPN, WeightedFusion, build_bifpn_backbone
from .fpn import build_fpn_backbone
from .ssd_extras import SSDExtras, build_ssd_extras_backbone
from .yolo import YOLOPyramid, build_yolo_backbone

__all__ = [
    "BiFPN",
    "BalancedFeaturePyramid",
    "NonLocalRefine",
    "SSDExtras",
    "WeightedFusion",
    "YOLOPyramid",
    "build_bifpn_backbone",
    "build_ssd_extras_backbone",
    "build_balanced_fpn_backbone",
    "build_fpn_backbone",
    "build_yolo_backbone",
]
