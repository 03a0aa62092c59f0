"""The configuration keys that this package adds to Detectron2's."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from .backbones import add_backbones, add_necks
from .dense import add_dense
from .rcnn import add_roi, add_rpn
from .run import add_run

__all__ = ["add_resobj_config"]


def add_resobj_config(cfg: CfgNode) -> None:
    """Add this package's keys, with defaults that make Detectron2's RetinaNet, to ``cfg``.

    Also registers this package's modules with Detectron2, so that ``build_model(cfg)`` works.
    """
    import resobj_d2.modeling  # noqa: F401  not at the top: reading this file needs no Detectron2

    node_type = type(cfg)  # detectron2.config.CfgNode, without importing Detectron2 here
    add_dense(cfg, node_type)
    add_rpn(cfg, node_type)
    add_roi(cfg, node_type)
    add_backbones(cfg, node_type)
    add_necks(cfg, node_type)
    add_run(cfg, node_type)
