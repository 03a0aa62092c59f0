"""YOLOv3's pyramid: three scales of a backbone, each informed by the coarser ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from resobj_d2.options import Option, build

from ..backbones.darknet import DarkNetConv

__all__ = ["YOLOPyramid", "build_yolo_backbone"]


class YOLOPyramid(Backbone):
    """Five convolutions per scale, alternating 1x1 and 3x3 (YOLOv3, section 2.3; Darknet's cfg).

    Starting from the coarsest scale, a scale's result goes through a 1x1 convolution to the next
    finer scale's width, is upsampled by two (nearest neighbour) and concatenated in front of the
    backbone's map. Maps are named ``y3``, ``y4``, ... after log2 of their strides.

    Args:
        bottom_up: the backbone.
        in_features: its maps, finest first, each with twice the stride of the previous one.
        channels: width of each scale's 1x1 convolutions; its 3x3 convolutions are twice as wide.
    """

    def __init__(
        self,
        *,
        bottom_up: Backbone,
        in_features: Annotated[
            Sequence[str], Option("maps of the backbone to use as scales, finest first")
        ] = ("dark3", "dark4", "dark5"),
        channels: Annotated[
            Sequence[int],
            Option(
                "width of each scale's 1x1 convolutions; 3x3 ones and the tower are twice as wide"
            ),
        ] = (128, 256, 512),
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        unknown = sorted(set(in_features) - set(shapes))
        if unknown or not in_features or len(channels) != len(in_features):
            raise ValueError(
                f"YOLO_PYRAMID.IN_FEATURES must be some of {sorted(shapes)} with as many CHANNELS, "
                f"got {list(in_features)} and {list(channels)}"
            )
        specs = [shapes[name] for name in in_features]
        strides = [spec.stride for spec in specs]
        if strides != [strides[0] * 2**i for i in range(len(strides))]:
            raise ValueError(f"YOLO_PYRAMID needs strides that double, finest first, got {strides}")
        self.bottom_up = bottom_up
        self.in_features = list(in_features)
        self.reduce = nn.ModuleList(
            DarkNetConv(in_channels=coarse, out_channels=fine, kernel_size=1)
            for fine, coarse in zip(channels, channels[1:], strict=False)
        )
        routed = [*channels[:-1], 0]
        self.scales = nn.ModuleList(
            _scale(in_channels=spec.channels + extra, channels=width)
            for spec, extra, width in zip(specs, routed, channels, strict=True)
        )
        self._shapes = {
            f"y{stride.bit_length() - 1}": ShapeSpec(channels=width, stride=stride)
            for stride, width in zip(strides, channels, strict=True)
        }

    @property
    def size_divisibility(self) -> int:
        return max(spec.stride for spec in self._shapes.values())

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Detectron2's constraints on the padding of a batch, besides ``size_divisibility``."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self._shapes)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """image: (N, 3, H, W), H and W multiples of ``size_divisibility``."""
        features = self.bottom_up(image)
        maps: list[Tensor] = []
        for i in reversed(range(len(self.scales))):
            x = features[self.in_features[i]]
            if maps:
                coarse = F.interpolate(self.reduce[i](maps[0]), scale_factor=2.0, mode="nearest")
                x = torch.cat((coarse, x), dim=1)
            maps.insert(0, self.scales[i](x))
        return dict(zip(self._shapes, maps, strict=True))


def _scale(*, in_channels: int, channels: int) -> nn.Sequential:
    layers = []
    for i in range(5):
        out, kernel = (2 * channels, 3) if i % 2 else (channels, 1)
        layers.append(DarkNetConv(in_channels=in_channels, out_channels=out, kernel_size=kernel))
        in_channels = out
    return nn.Sequential(*layers)


@BACKBONE_REGISTRY.register()
def build_yolo_backbone(cfg, input_shape: ShapeSpec) -> YOLOPyramid:
    """The pyramid on the backbone named by ``MODEL.YOLO_PYRAMID.BOTTOM_UP``."""
    node = cfg.MODEL.YOLO_PYRAMID
    bottom_up = BACKBONE_REGISTRY.get(node.BOTTOM_UP)(cfg, input_shape)
    return build(YOLOPyramid, node, bottom_up=bottom_up)
