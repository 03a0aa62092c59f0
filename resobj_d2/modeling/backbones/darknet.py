"""DarkNet-53 (Redmon and Farhadi, "YOLOv3", Table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from resobj_d2.options import Option, build

__all__ = ["DarkNet", "DarkNetConv", "build_darknet_backbone"]

# Residual blocks after each downsampling; strides 2, 4, 8, 16, 32.
DARKNET_53 = (1, 2, 8, 8, 4)


class DarkNetConv(nn.Sequential):
    """Convolution without bias, batch normalisation, leaky ReLU of slope 0.1.

    Args:
        kernel_size: odd; padding keeps the size at stride 1.
    """

    def __init__(
        self, *, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=padding, bias=False
        )
        # Darknet adds 1e-6 to the standard deviation; this eps of the variance comes closest.
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-6)
        self.act = nn.LeakyReLU(0.1)
        nn.init.kaiming_normal_(self.conv.weight, a=0.1)


class _Residual(nn.Module):
    """A 1x1 convolution to half the channels and a 3x3 one back, plus a skip connection."""

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.reduce = DarkNetConv(in_channels=channels, out_channels=half, kernel_size=1)
        self.expand = DarkNetConv(in_channels=half, out_channels=channels, kernel_size=3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(self.reduce(x))


class DarkNet(Backbone):
    """A stem and five stages, each a strided convolution followed by residual blocks.

    The outputs are called ``dark1`` to ``dark5``, at strides 2 to 32.

    Args:
        stem_channels: width of the stem; doubled by each stage (32 in DarkNet-53).
        blocks: number of residual blocks in each of the five stages.
        out_features: the outputs to return.
        freeze_at: 1 freezes the stem, 2 also stage ``dark1``, and so on; 0 freezes nothing. Frozen
            parts keep their batch statistics.
    """

    size_divisibility = 32

    def __init__(
        self,
        *,
        stem_channels: Annotated[
            int, Option("width of the first convolution; doubled by each of the five stages")
        ] = 32,
        blocks: Annotated[
            Sequence[int], Option("number of residual blocks per stage", source="YOLOv3, Table 1")
        ] = DARKNET_53,
        out_features: Annotated[
            Sequence[str], Option("some of dark1 .. dark5, at strides 2 .. 32")
        ] = ("dark3", "dark4", "dark5"),
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        if len(blocks) != 5:
            raise ValueError(f"DARKNET.BLOCKS must be five numbers, got {list(blocks)}")
        names = [f"dark{i + 1}" for i in range(5)]
        unknown = sorted(set(out_features) - set(names))
        if unknown or not out_features:
            raise ValueError(f"DARKNET.OUT_FEATURES must be some of {names}, got {out_features}")
        if not 0 <= freeze_at <= 6:
            raise ValueError(f"BACKBONE.FREEZE_AT must be 0..6 for DarkNet, got {freeze_at}")
        self.out_features = list(out_features)
        self.stem = DarkNetConv(in_channels=3, out_channels=stem_channels, kernel_size=3)
        self._shapes = {}
        channels = stem_channels
        for i, (name, count) in enumerate(zip(names, blocks, strict=True)):
            stage = [
                DarkNetConv(
                    in_channels=channels, out_channels=2 * channels, kernel_size=3, stride=2
                )
            ]
            channels *= 2
            stage += [_Residual(channels=channels) for _ in range(count)]
            self.add_module(name, nn.Sequential(*stage))
            self._shapes[name] = ShapeSpec(channels=channels, stride=2 ** (i + 1))
        for name in ["stem", *names][:freeze_at]:
            module = getattr(self, name)
            module.requires_grad_(False)
            setattr(self, name, FrozenBatchNorm2d.convert_frozen_batchnorm(module))

    def convolutions(self) -> list[tuple[str, nn.Conv2d, nn.Module]]:
        """(name, convolution, normalisation) in the order of Darknet's weight files."""
        return [
            (name, module.conv, module.norm)
            for name, module in self.named_modules()
            if isinstance(module, DarkNetConv)
        ]

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: self._shapes[name] for name in self.out_features}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """image: (N, 3, H, W)."""
        x = self.stem(image)
        features = {}
        for name in self._shapes:
            x = getattr(self, name)(x)
            if name in self.out_features:
                features[name] = x
        return features


@BACKBONE_REGISTRY.register()
def build_darknet_backbone(cfg, input_shape: ShapeSpec) -> DarkNet:
    """DarkNet-53 configured by ``MODEL.DARKNET``."""
    return build(DarkNet, cfg.MODEL.DARKNET, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
