"""Detectron2's FPN on any registered backbone, with a choice of coarser levels."""

from __future__ import annotations

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from torch import nn

__all__ = ["TOP_BLOCKS", "build_fpn_backbone"]

TOP_BLOCKS = ("p6p7_from_c5", "p6p7_from_p5", "max_pool", "none")


def _top_block(kind: str, *, name: str, channels: int, width: int, finest: str) -> nn.Module | None:
    """The module that makes the levels beyond the backbone's.

    Args:
        kind: one of ``TOP_BLOCKS``.
        name, channels: of the backbone's coarsest map.
        width: of the pyramid.
        finest: the pyramid's level of that map's stride, such as "p5".
    """
    if kind == "p6p7_from_c5":
        return LastLevelP6P7(channels, width, in_feature=name)
    if kind == "p6p7_from_p5":
        return LastLevelP6P7(width, width, in_feature=finest)
    if kind == "max_pool":
        block = LastLevelMaxPool()
        block.in_feature = finest
        return block
    if kind == "none":
        return None
    raise ValueError(
        f"MODEL.ANY_FPN.TOP_BLOCK must be one of {', '.join(TOP_BLOCKS)}, got {kind!r}"
    )


@BACKBONE_REGISTRY.register()
def build_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """FPN (Lin et al. 2017) on the backbone named by ``MODEL.ANY_FPN.BOTTOM_UP``.

    ``MODEL.FPN`` has Detectron2's keys. The parameters are named as in Detectron2.

    Raises:
        ValueError: the backbone lacks a map of ``MODEL.FPN.IN_FEATURES``, their strides do not
            double, or there is no such ``TOP_BLOCK``.
    """
    node, fpn = cfg.MODEL.ANY_FPN, cfg.MODEL.FPN
    bottom_up = BACKBONE_REGISTRY.get(node.BOTTOM_UP)(cfg, input_shape)
    shapes = bottom_up.output_shape()
    missing = [name for name in fpn.IN_FEATURES if name not in shapes]
    if missing or not fpn.IN_FEATURES:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES lists {missing or 'nothing'}, but {node.BOTTOM_UP} has "
            f"{sorted(shapes)}"
        )
    strides = [shapes[name].stride for name in fpn.IN_FEATURES]
    if strides != [strides[0] << i for i in range(len(strides))]:
        raise ValueError(f"MODEL.FPN.IN_FEATURES must have strides that double, got {strides}")
    last = fpn.IN_FEATURES[-1]
    return FPN(
        bottom_up=bottom_up,
        in_features=list(fpn.IN_FEATURES),
        out_channels=fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=_top_block(
            node.TOP_BLOCK,
            name=last,
            channels=shapes[last].channels,
            width=fpn.OUT_CHANNELS,
            finest=f"p{strides[-1].bit_length() - 1}",
        ),
        fuse_type=fpn.FUSE_TYPE,
    )
