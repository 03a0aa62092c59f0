"""The configuration keys of runs: solver, datasets, evaluation, input."""

from __future__ import annotations

from fvcore.common.config import CfgNode

__all__ = ["add_run"]


def add_run(cfg: CfgNode, node_type: type) -> None:
    """Of training and evaluation, whatever the detector."""
    # Evaluate and save an exponential moving average of the weights (EfficientDet: 0.9998); 0 for
    # the weights themselves.
    cfg.SOLVER.EMA_DECAY = 0.0
    # Datasets of your own, a list of dicts; see docs/datasets.md.
    cfg.DATASETS.REGISTER = []
    # "auto" is faster-coco-eval where it is installed and pycocotools otherwise.
    cfg.TEST.COCO_BACKEND = "auto"
    # Evaluate boxes by GIoU as well: results "bbox_giou".
    cfg.TEST.GIOU_EVAL = False
    # [height, width] to which every image is stretched; [] for MIN_SIZE_*, MAX_SIZE_*.
    cfg.INPUT.FIXED_SIZE = []
    # [low, high]: training images are scaled by a random factor, relative to the square of
    # MAX_SIZE_TRAIN that they fit into, then cropped or padded to that square; [] for never.
    cfg.INPUT.SCALE_JITTER = []
    # Lengths of the images' longer side, one of which every MULTI_SCALE_PERIOD training batches
    # get after loading, the last MULTI_SCALE_LAST ones the largest; [] for never.
    cfg.INPUT.MULTI_SCALE = []
    cfg.INPUT.MULTI_SCALE_PERIOD = 10
    cfg.INPUT.MULTI_SCALE_LAST = 0
    # SSD's training augmentations, in front of resizing and flipping.
    # Random brightness, contrast, saturation, hue and order of channels.
    cfg.INPUT.PHOTOMETRIC = False
    # Put the image on a canvas of up to so many times its size, half the time; 1 for never.
    cfg.INPUT.EXPAND = 1.0
    # Crop so that some box keeps a random minimum IoU with the crop.
    cfg.INPUT.IOU_CROP = False
