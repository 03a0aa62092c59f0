"""Convolutions between the feature pyramid and the predictors."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.layers import get_norm
from torch import Tensor, nn

from resobj_d2.structures import TowerFeatures

from .build import TOWER_REGISTRY
from .predictors import init_conv

__all__ = ["ConvTower"]


@TOWER_REGISTRY.register()
class ConvTower(nn.Module):
    """RetinaNet's two stacks of 3x3 convolutions, shared over the levels.

    Args:
        in_channels: channels of each level; all equal, since the stacks are shared.
        channels: width of the stacks.
        num_convs: convolutions per stack.
        norm: "" or a name of ``detectron2.layers.get_norm``.
        tasks: the stacks to make.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        channels: int,
        num_convs: int,
        norm: str = "",
        tasks: Sequence[str] = ("cls", "box"),
    ) -> None:
        super().__init__()
        if len(set(in_channels)) != 1:
            raise ValueError(
                f"ConvTower is shared over levels of equal width, got {list(in_channels)}"
            )
        if norm in ("BN", "SyncBN"):
            # The levels' statistics differ, so shared running means would fit none of them.
            raise ValueError(f"TOWER.NORM={norm} needs statistics per level; use GN")
        width = channels if num_convs else in_channels[0]
        self.out_channels = [width] * len(in_channels)
        self.tasks = list(tasks)
        for task in tasks:
            self.add_module(task, _conv_stack(in_channels[0], channels, num_convs, norm))

    @classmethod
    def from_config(
        cls, node, in_channels: Sequence[int], tasks: Sequence[str] = ("cls", "box")
    ) -> ConvTower:
        return cls(
            in_channels=in_channels,
            channels=node.CHANNELS,
            num_convs=node.NUM_CONVS,
            norm=node.NORM,
            tasks=tasks,
        )

    def forward(self, features: list[Tensor]) -> TowerFeatures:
        maps = {task: self.run(task, features) for task in self.tasks}
        return TowerFeatures(**maps, pyramid=features)

    def run(self, task: str, features: list[Tensor]) -> list[Tensor]:
        """One task's maps."""
        stack = getattr(self, task)
        return [stack(x) for x in features]


def _conv_stack(in_channels: int, channels: int, num_convs: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers.append(nn.Conv2d(in_channels, channels, kernel_size=3, padding=1))
        if norm:
            layers.append(get_norm(norm, channels))
        layers.append(nn.ReLU())
        in_channels = channels
    stack = nn.Sequential(*layers)
    init_conv(stack)
    return stack
