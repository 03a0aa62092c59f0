"""Builds a stream from its configuration node."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from resobj_d2.losses import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY, NORMALIZER_REGISTRY
from resobj_d2.matching import (
    ASSIGNER_REGISTRY,
    CODER_REGISTRY,
    PRIORS_REGISTRY,
    SAMPLER_REGISTRY,
)
from resobj_d2.options import arguments_from, build

from .build import BRANCH_REGISTRY, PREDICTOR_REGISTRY, TOWER_REGISTRY
from .contracts import Tower
from .fusion import build_fusion
from .heads import HeadParts
from .stages import build_stages
from .stream import DenseStream

__all__ = ["build_stream"]


def build_stream(
    node,
    *,
    num_classes: int,
    tower: Tower,
    tower_node,
    pyramid_channels: Sequence[int],
    strides: Sequence[int],
) -> DenseStream:
    """Build every slot from its own sub-node.

    Args:
        node: ``MODEL.DENSE`` or ``MODEL.DENSE.ANCHOR_FREE``.
        num_classes: K.
        tower: the tower that the stream reads.
        tower_node: ``MODEL.DENSE.TOWER``, for stages with their own tower.
        pyramid_channels: number of input channels of towers, per level.
        strides: strides of the feature maps, per level.
    """
    priors = _slot(PRIORS_REGISTRY, node.PRIORS, strides=strides)
    parts = HeadParts(
        in_channels=tower.out_channels,
        num_anchors=priors.num_anchors,
        make_predictor=partial(_slot, PREDICTOR_REGISTRY, node.PREDICTOR),
        make_hidden=tower.hidden,
    )
    coder = _slot(CODER_REGISTRY, node.CODER)
    branches = [
        build(entry, node[entry.node_name], num_classes=num_classes, parts=parts)
        for _, entry in sorted(BRANCH_REGISTRY)
        if node[entry.node_name].ENABLED
    ]
    stages = build(
        build_stages,
        node,
        num_classes=num_classes,
        parts=parts,
        coder=coder,
        make_assigner=partial(_slot, ASSIGNER_REGISTRY, node.ASSIGNER, num_classes=num_classes),
        make_cls_loss=partial(_slot, CLS_LOSS_REGISTRY, node.CLS_LOSS),
        make_box_loss=partial(_slot, BOX_LOSS_REGISTRY, node.BOX_LOSS),
        make_normalizer=partial(_slot, NORMALIZER_REGISTRY, node.NORMALIZER),
        make_tower=partial(_slot, TOWER_REGISTRY, tower_node),
        pyramid_channels=pyramid_channels,
    )
    fusion = build(
        build_fusion,
        node.FUSION,
        factors=["cls", *(b.name for b in branches)],
        shares={b.name: b.fusion_share for b in branches if b.fusion_share is not None},
    )
    return DenseStream(
        priors=priors,
        coder=coder,
        sampler=_slot(SAMPLER_REGISTRY, node.SAMPLER),
        stages=stages,
        branches=branches,
        fusion=fusion,
        **arguments_from(DenseStream, node),
    )


def _slot(registry, node, **context):
    """The entry named by ``node.NAME``, built with its options."""
    return build(registry.get(node.NAME), node, **context)
