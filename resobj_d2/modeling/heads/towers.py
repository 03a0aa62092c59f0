"""Convolutions between the feature pyramid and the predictors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from detectron2.layers import get_norm
from torch import Tensor, nn

from resobj_d2.modeling.build import TOWER_REGISTRY
from resobj_d2.modeling.contracts import Tower
from resobj_d2.options import Option
from resobj_d2.structures import TowerFeatures

from .predictors import init_conv

__all__ = ["ConvStack", "ConvTower", "NoTower"]

GROUPS = 32  # of Detectron2's "GN"

Channels = Annotated[int, Option("width of the convolutions", key="CHANNELS")]
NumConvs = Annotated[
    int, Option("number of convolutions before the predictors, per task", key="NUM_CONVS")
]


class ConvStack(nn.Sequential):
    """3x3 convolutions with ReLU, shared by all levels.

    Args:
        in_channels: channels of each level; all equal, since the layers are shared.
        channels: width of the stack.
        num_convs: number of convolutions; 0 for none (identity).
        norm: "" or a name of ``detectron2.layers.get_norm``.
    """

    def __init__(
        self, *, in_channels: Sequence[int], channels: int, num_convs: int, norm: str = ""
    ) -> None:
        if len(set(in_channels)) != 1:
            raise ValueError(
                f"layers shared over the levels need equal widths, got {list(in_channels)}"
            )
        width = in_channels[0]
        layers: list[nn.Module] = []
        for _ in range(num_convs):
            layers.append(nn.Conv2d(width, channels, kernel_size=3, padding=1))
            if norm:
                layers.append(get_norm(norm, channels))
            layers.append(nn.ReLU())
            width = channels
        super().__init__(*layers)
        self.out_channels = [width] * len(in_channels)
        init_conv(self)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [super(ConvStack, self).forward(x) for x in features]


@TOWER_REGISTRY.register()
class ConvTower(Tower):
    """RetinaNet's two stacks of 3x3 convolutions, shared by the levels.

    Args:
        in_channels: channels of each level; all equal, since the stacks are shared.
        channels: width of the stacks.
        num_convs: convolutions per stack.
        norm: "" or a name of ``detectron2.layers.get_norm``.
        tasks: the stacks to build.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        channels: Channels = 256,
        num_convs: NumConvs = 4,
        norm: Annotated[str, Option('"" or a name of detectron2.layers.get_norm, e.g. "GN"')] = "",
        tasks: Sequence[str] = ("cls", "box"),
    ) -> None:
        super().__init__()
        if norm == "GN" and num_convs and channels % GROUPS:
            raise ValueError(
                f"TOWER.CHANNELS {channels} with TOWER.NORM=GN must be a multiple of {GROUPS}, the "
                "number of groups"
            )
        if norm in ("BN", "SyncBN"):
            # Levels have different statistics, so shared running means would fit none of them.
            raise ValueError(f"TOWER.NORM={norm} needs statistics per level; use GN")
        self.tasks = list(tasks)
        for task in tasks:
            stack = ConvStack(
                in_channels=in_channels, channels=channels, num_convs=num_convs, norm=norm
            )
            self.add_module(task, stack)
        self.out_channels = stack.out_channels

    def run(self, task: str, features: list[Tensor]) -> list[Tensor]:
        """One task's maps."""
        return getattr(self, task)(features)

    def hidden(
        self, *, in_channels: Sequence[int], channels: Sequence[int], num_convs: int
    ) -> ConvStack:
        """Hidden layers for a score branch in the style of this tower."""
        if len(set(channels)) != 1:
            raise ValueError(f"shared hidden layers need one width, got {list(channels)}")
        return ConvStack(in_channels=in_channels, channels=channels[0], num_convs=num_convs)


@TOWER_REGISTRY.register()
class NoTower(Tower):
    """No layers: predictors read the pyramid, as in SSD. Score branches' layers are per level."""

    def __init__(self, *, in_channels: Sequence[int], tasks: Sequence[str] = ("cls", "box")):
        super().__init__()
        self.out_channels = list(in_channels)
        self.tasks = list(tasks)

    def forward(self, features: list[Tensor]) -> TowerFeatures:
        return TowerFeatures(cls=features, box=features, pyramid=features)

    def run(self, task: str, features: list[Tensor]) -> list[Tensor]:
        """The features themselves."""
        return features

    def hidden(
        self, *, in_channels: Sequence[int], channels: Sequence[int], num_convs: int
    ) -> PerLevelStack:
        """Hidden layers for a score branch in the style of this tower."""
        return PerLevelStack(in_channels=in_channels, channels=channels, num_convs=num_convs)


class PerLevelStack(nn.Module):
    """3x3 convolutions with ReLU, separate for each level.

    Args:
        in_channels, channels: input and output channels of each level.
        num_convs: convolutions per level.
    """

    def __init__(
        self, *, in_channels: Sequence[int], channels: Sequence[int], num_convs: int
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            ConvStack(in_channels=[before], channels=width, num_convs=num_convs)
            for before, width in zip(in_channels, channels, strict=True)
        )
        self.out_channels = [stack.out_channels[0] for stack in self.levels]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [
            x for stack, level in zip(self.levels, features, strict=True) for x in stack([level])
        ]
