"""Backbones that Detectron2 lacks, registered with it."""

from .darknet import DarkNet, DarkNetConv, build_darknet_backbone
from .timm import TimmBackbone, build_timm_backbone, without_imagenet_weights
from .vgg import (
    SSDVGG16,
    VGG16,
    ChannelNorm,
    build_ssd_vgg16_backbone,
    build_vgg16_backbone,
)

__all__ = [
    "ChannelNorm",
    "DarkNet",
    "DarkNetConv",
    "SSDVGG16",
    "TimmBackbone",
    "VGG16",
    "build_darknet_backbone",
    "build_ssd_vgg16_backbone",
    "build_timm_backbone",
    "build_vgg16_backbone",
    "without_imagenet_weights",
]
