"""Backbones that Detectron2 lacks, registered with it."""

from .darknet import DarkNet, DarkNetConv, build_darknet_backbone
from .timm import TimmBackbone, build_timm_backbone

__all__ = [
    "DarkNet",
    "DarkNetConv",
    "TimmBackbone",
    "build_darknet_backbone",
    "build_timm_backbone",
]
