"""Necks: what sits between a backbone and the heads, registered as Detectron2 backbones."""

from .balanced_fpn import BalancedFeaturePyramid, NonLocalRefine, build_balanced_fpn_backbone

__all__ = ["BalancedFeaturePyramid", "NonLocalRefine", "build_balanced_fpn_backbone"]
