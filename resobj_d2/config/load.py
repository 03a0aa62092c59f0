"""From a command line to a checked, frozen configuration."""

from __future__ import annotations

import contextlib
import difflib
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence

import torch
from detectron2.config import CfgNode, get_cfg

from resobj_d2.data.register import check_names, check_num_classes, register_datasets

from .defaults import add_resobj_config

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
        ValueError: there is no such key; a dataset is not registered, or the number of classes
            differs from its; options that the chosen architecture or RoI heads do not read; a
            batch size or learning rate that nothing can be trained with.
    """
    cfg = get_cfg()
    add_resobj_config(cfg)
    if config_file:
        if not os.path.isfile(config_file):
            raise FileNotFoundError(f"config file not found: {os.path.abspath(config_file)}")
        with _explained_keys(cfg, config_file):
            cfg.merge_from_file(config_file)
    if len(opts) % 2:
        raise ValueError(f"overrides are pairs of KEY VALUE, got an odd number: {list(opts)}")
    with _explained_keys(cfg, "the overrides KEY VALUE"):
        cfg.merge_from_list(list(opts))
    if torch.device(cfg.MODEL.DEVICE).type == "cuda" and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s but no GPU can be used: using cpu", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    _check_dense_options(cfg)
    _check_roi_options(cfg)
    if training:
        _check_solver(cfg)
    else:
        cfg.DATASETS.TRAIN = ()
    register_datasets(cfg.DATASETS.REGISTER)
    for key in ("TRAIN", "TEST"):
        check_names(cfg.DATASETS[key], f"DATASETS.{key}")
    check_num_classes(class_counts(cfg), [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    cfg.freeze()
    return cfg


@contextlib.contextmanager
def _explained_keys(cfg: CfgNode, source: str) -> Iterator[None]:
    """Say where a key that does not exist was read, and which it might have been.

    yacs raises a KeyError for a file and an AssertionError for a list.
    """
    try:
        yield
    except (AssertionError, KeyError) as error:
        found = re.fullmatch(r"Non-existent (?:config )?key: (\S+)", str(error.args[0]))
        if found is None:
            raise
        key = found[1]
        similar = difflib.get_close_matches(key, _keys(cfg), n=3)
        hint = f". Did you mean {' or '.join(similar)}?" if similar else ""
        raise ValueError(f"{source}: there is no key {key}{hint}") from None


def _keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """The full names of all keys and nodes."""
    for name, value in node.items():
        yield prefix + name
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")


def _check_solver(cfg: CfgNode) -> None:
    """Refuse by the key's name what Detectron2 and torch refuse without it, and later."""
    solver = cfg.SOLVER
    if solver.IMS_PER_BATCH < 1:
        raise ValueError(f"SOLVER.IMS_PER_BATCH must be at least 1, got {solver.IMS_PER_BATCH}")
    if not 0 <= solver.BASE_LR < math.inf:
        raise ValueError(
            f"SOLVER.BASE_LR must be a finite number and not negative, got {solver.BASE_LR}"
        )


def _check_dense_options(cfg: CfgNode) -> None:
    """Refuse methods of the dense detector that Detectron2's detectors would pass over."""
    dense, name = cfg.MODEL.DENSE, cfg.MODEL.META_ARCHITECTURE
    if name not in ("RetinaNet", "GeneralizedRCNN"):
        return
    asked = [
        f"{part}.ENABLED"
        for part in ("OBJECTNESS", "QUALITY", "ANCHOR_FREE")
        if dense[part].ENABLED
    ]
    if dense.STAGES:
        asked.append("STAGES")
    if asked:
        instead = {
            "RetinaNet": "MODEL.META_ARCHITECTURE is to be ResObjDenseDetector",
            "GeneralizedRCNN": "for R-CNNs there are MODEL.RESOBJ_RPN and MODEL.RESOBJ_ROI",
        }
        keys = ", ".join(f"MODEL.DENSE.{key}" for key in asked)
        raise ValueError(f"{keys}: no effect on MODEL.META_ARCHITECTURE {name}; {instead[name]}")


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
