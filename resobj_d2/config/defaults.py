"""This package's keys, added to Detectron2's."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from .backbones import backbone_keys
from .dense import dense_keys
from .keys import Keys
from .rcnn import rcnn_keys
from .run import run_keys
from .zoo import know_zoo

__all__ = ["add_resobj_config", "all_keys"]


def all_keys() -> Keys:
    """Every key of this package, with those of all entries that are registered now."""
    keys = Keys()
    for part in (dense_keys, rcnn_keys, backbone_keys, run_keys):
        keys.add(part())
    return keys


def add_resobj_config(cfg: CfgNode) -> None:
    """Add this package's keys, with defaults that make Detectron2's RetinaNet, to ``cfg``.

    Also registers this package's modules with Detectron2, so that ``build_model(cfg)`` works,
    and makes ``cfg.merge_from_file`` understand ``resobj_d2://`` (:mod:`.zoo`).
    Call it after importing losses, assigners and the like of your own: their options become keys.
    """
    all_keys().add_to(cfg)
    know_zoo(cfg)
