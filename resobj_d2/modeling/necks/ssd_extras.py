"""SSD's extra feature layers: ever coarser levels on top of a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from resobj_d2.options import Option, build

__all__ = ["SSDExtras", "build_ssd_extras_backbone"]


class SSDExtras(Backbone):
    """The maps of a backbone, followed by extra levels, each half the size of the previous one.

    Each extra level is a 1x1 convolution to half its channels, ReLU, a strided convolution and
    ReLU (Liu et al. 2016, "SSD", section 3; its footnote 5 for 512 pixels). Levels are named
    ``s1``, ``s2``, ... from the finest; weights are Xavier-uniform.

    Args:
        bottom_up: the backbone.
        in_features: its maps to use as levels, finest first.
        channels: width of each extra level.
        last_kernel: kernel size of the last extra level. SSD512's 4 with padding 1 covers the whole
            2x2 map; the stride 2 used here gives the same result there and halves larger maps.
    """

    def __init__(
        self,
        *,
        bottom_up: Backbone,
        in_features: Annotated[
            Sequence[str], Option("maps of the backbone to use as levels, finest first")
        ] = ("conv4_3", "fc7"),
        channels: Annotated[
            Sequence[int], Option("width of each extra level; all levels are named s1, s2, ...")
        ] = (512, 256, 256, 256, 256),
        last_kernel: Annotated[int, Option("kernel size of the last extra level, 3 or 4")] = 4,
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        unknown = sorted(set(in_features) - set(shapes))
        if unknown or not in_features:
            raise ValueError(
                f"SSD_EXTRAS.IN_FEATURES must be some of {sorted(shapes)}, got {list(in_features)}"
            )
        if last_kernel not in (3, 4):
            raise ValueError(f"SSD_EXTRAS.LAST_KERNEL must be 3 or 4, got {last_kernel}")
        self.bottom_up = bottom_up
        self.in_features = list(in_features)
        self.extras = nn.ModuleList()
        specs = [shapes[name] for name in in_features]
        stride, width = specs[-1].stride, specs[-1].channels
        for i, out in enumerate(channels):
            kernel = last_kernel if i == len(channels) - 1 else 3
            self.extras.append(
                nn.Sequential(
                    nn.Conv2d(width, out // 2, kernel_size=1),
                    nn.ReLU(),
                    nn.Conv2d(out // 2, out, kernel_size=kernel, stride=2, padding=1),
                    nn.ReLU(),
                )
            )
            stride, width = 2 * stride, out
            specs.append(ShapeSpec(channels=width, stride=stride))
        for layer in self.extras.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        self._shapes = {
            f"s{i + 1}": ShapeSpec(channels=spec.channels, stride=spec.stride)
            for i, spec in enumerate(specs)
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
        maps = [features[name] for name in self.in_features]
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return dict(zip(self._shapes, maps, strict=True))


@BACKBONE_REGISTRY.register()
def build_ssd_extras_backbone(cfg, input_shape: ShapeSpec) -> SSDExtras:
    """Extra levels on the backbone named by ``MODEL.SSD_EXTRAS.BOTTOM_UP``."""
    node = cfg.MODEL.SSD_EXTRAS
    bottom_up = BACKBONE_REGISTRY.get(node.BOTTOM_UP)(cfg, input_shape)
    return build(SSDExtras, node, bottom_up=bottom_up)
