"""The configuration keys of this package's backbones and necks; see ``dense.py``."""

from __future__ import annotations

from fvcore.common.config import CfgNode

__all__ = ["add_backbones", "add_necks"]


def add_backbones(cfg: CfgNode, node_type: type) -> None:
    """Used where MODEL.BACKBONE.NAME is build_{darknet,timm}_backbone."""
    darknet = cfg.MODEL.DARKNET = node_type()
    # Width of the first convolution; each of the five stages doubles it.
    darknet.STEM_CHANNELS = 32
    # Residual blocks per stage.
    darknet.BLOCKS = [1, 2, 8, 8, 4]
    # Some of dark1 .. dark5, at strides 2 .. 32.
    darknet.OUT_FEATURES = ["dark3", "dark4", "dark5"]

    timm = cfg.MODEL.TIMM = node_type()
    # A model of timm.list_models(); needs the package timm.
    timm.NAME = "tf_efficientnet_b0"
    # Strides of the maps, called c3 (stride 8), c4, ...
    timm.STRIDES = [8, 16, 32]
    timm.DROP_PATH_RATE = 0.0
    # Of its batch normalisation, torch's convention; 0 for what the model has.
    timm.BN_MOMENTUM = 0.0
    # Let timm download ImageNet weights; not where MODEL.WEIGHTS names a checkpoint.
    timm.PRETRAINED = False


def add_necks(cfg: CfgNode, node_type: type) -> None:
    """Used where MODEL.BACKBONE.NAME is build_{balanced_fpn,bifpn,ssd_extras,yolo}_backbone."""
    bfp = cfg.MODEL.BFP = node_type()
    # The registered backbone whose pyramid is balanced.
    bfp.PYRAMID = "build_retinanet_resnet_fpn_backbone"
    # The level at which all meet, counted from the finest: 1 for P3-P7, 2 for P2-P6.
    bfp.REFINE_LEVEL = 1
    # "non_local" or "none".
    bfp.REFINE = "non_local"

    bifpn = cfg.MODEL.BIFPN = node_type()
    # The registered backbone below, and its three maps, finest first.
    bifpn.BOTTOM_UP = "build_timm_backbone"
    bifpn.IN_FEATURES = ["c3", "c4", "c5"]
    bifpn.CHANNELS = 64
    bifpn.NUM_LAYERS = 3
    # "fast" (normalised by the sum), "softmax" or "sum" (no weights).
    bifpn.FUSION = "fast"
    # See TOWER.BN_MOMENTUM.
    bifpn.BN_MOMENTUM = 0.01

    extras = cfg.MODEL.SSD_EXTRAS = node_type()
    # The registered backbone below, and its maps that are levels, finest first.
    extras.BOTTOM_UP = "build_ssd_vgg16_backbone"
    extras.IN_FEATURES = ["conv4_3", "fc7"]
    # Width of each extra level; the levels are called s1, s2, ...
    extras.CHANNELS = [512, 256, 256, 256, 256]
    # Kernel of the last extra level, 3 or 4.
    extras.LAST_KERNEL = 4

    pyramid = cfg.MODEL.YOLO_PYRAMID = node_type()
    # The registered backbone below, and its maps that are scales, finest first.
    pyramid.BOTTOM_UP = "build_darknet_backbone"
    pyramid.IN_FEATURES = ["dark3", "dark4", "dark5"]
    # Width of each scale's 1x1 convolutions; its 3x3 ones and its tower have twice that.
    pyramid.CHANNELS = [128, 256, 512]
