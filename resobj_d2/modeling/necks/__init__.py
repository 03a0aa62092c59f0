"""Necks: what sits between a backbone and the heads, registered as Detectron2 backbones."""

from .balanced_fpn import BalancedFeaturePyramid, NonLocalRefine, build_balanced_fpn_backbone
from .bifpn import BiFPN, WeightedFusion, build_bifpn_backbone

__all__ = [
    "BiFPN",
    "BalancedFeaturePyramid",
    "NonLocalRefine",
    "WeightedFusion",
    "build_bifpn_backbone",
    "build_balanced_fpn_backbone",
]
