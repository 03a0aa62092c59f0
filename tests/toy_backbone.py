"""Backbones of a few convolutions, for tests of what comes after a backbone."""

from __future__ import annotations

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

TRUNK_CHANNELS = {"res3": 8, "res4": 12, "res5": 16}
PYRAMID_CHANNELS = 16


def block(in_channels: int, channels: int, *, kernel_size: int, stride: int) -> nn.Sequential:
    padding = 1 if kernel_size == 3 else 0
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size, stride, padding),
        nn.GroupNorm(2, channels),
        nn.ReLU(),
    )


class ToyBackbone(Backbone):
    """res3, res4 and res5 at a ResNet's strides, with as few channels as possible."""

    size_divisibility = 32

    def __init__(self) -> None:
        super().__init__()
        c3, c4, c5 = TRUNK_CHANNELS.values()
        self.res3 = block(3, c3, kernel_size=8, stride=8)
        self.res4 = block(c3, c4, kernel_size=3, stride=2)
        self.res5 = block(c4, c5, kernel_size=3, stride=2)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        c3 = self.res3(image)
        c4 = self.res4(c3)
        return {"res3": c3, "res4": c4, "res5": self.res5(c4)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=channels, stride=8 * 2**i)
            for i, (name, channels) in enumerate(TRUNK_CHANNELS.items())
        }


class ToyPyramid(Backbone):
    """p3 to p7 as in RetinaNet's FPN, without its top-down path."""

    size_divisibility = 32

    def __init__(self) -> None:
        super().__init__()
        self.bottom_up = ToyBackbone()
        self.lateral = nn.ModuleList(
            nn.Conv2d(channels, PYRAMID_CHANNELS, kernel_size=1)
            for channels in TRUNK_CHANNELS.values()
        )
        self.coarser = nn.ModuleList(
            nn.Conv2d(PYRAMID_CHANNELS, PYRAMID_CHANNELS, 3, stride=2, padding=1) for _ in range(2)
        )
        for conv in (*self.lateral, *self.coarser):  # as in Detectron2's FPN
            c2_xavier_fill(conv)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = self.bottom_up(image).values()
        levels = [conv(x) for conv, x in zip(self.lateral, maps, strict=True)]
        for conv in self.coarser:
            levels.append(conv(levels[-1].relu()))
        return dict(zip(self.output_shape(), levels, strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"p{i}": ShapeSpec(channels=PYRAMID_CHANNELS, stride=2**i) for i in range(3, 8)}


@BACKBONE_REGISTRY.register()
def build_toy_backbone(cfg, input_shape):
    return ToyBackbone()


@BACKBONE_REGISTRY.register()
def build_toy_pyramid(cfg, input_shape):
    return ToyPyramid()
