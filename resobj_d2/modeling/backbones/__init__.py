"""Backbones that Detectron2 lacks, registered with it."""

from .darknet import DarkNet, DarkNetConv, build_darknet_backbone

__all__ = ["DarkNet", "DarkNetConv", "build_darknet_backbone"]
