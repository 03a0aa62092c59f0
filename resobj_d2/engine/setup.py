"""From a command line to a checked, frozen configuration."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, get_cfg

from resobj_d2.config import add_resobj_config
from resobj_d2.data.register import check_names, check_num_classes, register_datasets

__all__ = ["class_counts", "load_config"]

logger = logging.getLogger(__name__)


def load_config(config_file: str, opts: Sequence[str] = (), *, training: bool = True) -> CfgNode:
    """Read a yaml, apply ``KEY VALUE`` overrides, register and check the datasets.

    Args:
        config_file: path of a yaml; "" for the defaults.
        opts: alternating keys and values, as on Detectron2's command line.
        training: False where the training data are not needed; ``DATASETS.TRAIN`` is emptied.

    Returns:
        The frozen configuration. ``MODEL.DEVICE`` is "cpu" where "cuda" was asked for and no
        GPU can be used.

    Raises:
        FileNotFoundError: no such yaml, or a registered dataset's files are missing.
        ValueError: a dataset is not registered, or the number of classes differs from its; options
            that the chosen RoI heads do not read.
    """
    cfg = get_cfg()
    add_resobj_config(cfg)
    if config_file:
        if not os.path.isfile(config_file):
            raise FileNotFoundError(f"config file not found: {os.path.abspath(config_file)}")
        cfg.merge_from_file(config_file)
    if len(opts) % 2:
        raise ValueError(f"overrides are pairs of KEY VALUE, got an odd number: {list(opts)}")
    cfg.merge_from_list(list(opts))
    if torch.device(cfg.MODEL.DEVICE).type == "cuda" and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s but no GPU can be used: using cpu", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    _check_roi_options(cfg)
    if not training:
        cfg.DATASETS.TRAIN = ()
    register_datasets(cfg.DATASETS.REGISTER)
    for key in ("TRAIN", "TEST"):
        check_names(cfg.DATASETS[key], f"DATASETS.{key}")
    check_num_classes(class_counts(cfg), [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    cfg.freeze()
    return cfg


def _check_roi_options(cfg: CfgNode) -> None:
    """Refuse options for RoI heads that are Detectron2's own and would pass over them."""
    roi, name = cfg.MODEL.RESOBJ_ROI, cfg.MODEL.ROI_HEADS.NAME
    own = {"StandardROIHeads": "ResObjROIHeads", "CascadeROIHeads": "ResObjCascadeROIHeads"}
    asked = roi.BOX_LOSS.NAME or roi.SAMPLER.NAME or roi.QUALITY.ENABLED
    if (
        cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
        and asked
        and name in (*own, "Res5ROIHeads")
    ):
        instead = own.get(name, "ResObjROIHeads on an FPN")
        raise ValueError(
            f"MODEL.RESOBJ_ROI has no effect on MODEL.ROI_HEADS.NAME {name}; use {instead}"
        )


def class_counts(cfg: CfgNode) -> dict[str, int]:
    """The keys that tell this model's number of classes, with their values."""
    by_architecture = {
        "ResObjDenseDetector": ["DENSE"],
        "RetinaNet": ["RETINANET"],
        "GeneralizedRCNN": ["ROI_HEADS"],
    }
    nodes = by_architecture.get(cfg.MODEL.META_ARCHITECTURE, [])
    return {f"MODEL.{node}.NUM_CLASSES": cfg.MODEL[node].NUM_CLASSES for node in nodes}
