"""YOLOv3's layer before the predictors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from resobj_d2.modeling.backbones.darknet import DarkNetConv
from resobj_d2.modeling.build import TOWER_REGISTRY
from resobj_d2.modeling.contracts import Tower
from resobj_d2.structures import TowerFeatures

__all__ = ["DarkNetStack", "YOLOTower"]


class DarkNetStack(nn.Module):
    """3x3 convolutions with batch normalisation and leaky ReLU, separate for each level.

    Args:
        in_channels, channels: input and output channels of each level.
        num_convs: convolutions per level; 0 for none (identity).
    """

    def __init__(
        self, *, in_channels: Sequence[int], channels: Sequence[int], num_convs: int = 1
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for before, width in zip(in_channels, channels, strict=True):
            widths = [before] + [width] * num_convs
            self.levels.append(
                nn.Sequential(
                    *(
                        DarkNetConv(in_channels=a, out_channels=b, kernel_size=3)
                        for a, b in zip(widths, widths[1:], strict=False)
                    )
                )
            )
        self.out_channels = list(channels if num_convs else in_channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [stack(x) for stack, x in zip(self.levels, features, strict=True)]


@TOWER_REGISTRY.register()
class YOLOTower(Tower):
    """One 3x3 convolution per level that doubles its width, read by all predictors (YOLOv3).

    Args:
        in_channels: channels of each level.
        tasks: "cls", "box"; both read the same maps.
    """

    def __init__(self, *, in_channels: Sequence[int], tasks: Sequence[str] = ("cls", "box")):
        super().__init__()
        self.tasks = list(tasks)
        self.convs = DarkNetStack(
            in_channels=in_channels, channels=[2 * width for width in in_channels]
        )
        self.out_channels = self.convs.out_channels

    def forward(self, features: list[Tensor]) -> TowerFeatures:
        maps = self.convs(features)
        return TowerFeatures(cls=maps, box=maps, pyramid=features)

    def run(self, task: str, features: list[Tensor]) -> list[Tensor]:
        """One task's maps."""
        return self.convs(features)

    def hidden(
        self, *, in_channels: Sequence[int], channels: Sequence[int], num_convs: int
    ) -> DarkNetStack:
        """Hidden layers for a score branch in the style of this tower."""
        return DarkNetStack(in_channels=in_channels, channels=channels, num_convs=num_convs)
