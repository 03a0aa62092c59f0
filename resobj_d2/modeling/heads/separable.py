"""EfficientDet's heads: separable convolutions shared by the levels, with per-level statistics.

Tan, Pang, Le, "EfficientDet: Scalable and Efficient Object Detection", section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F

from resobj_d2.modeling.build import PREDICTOR_REGISTRY, TOWER_REGISTRY
from resobj_d2.modeling.contracts import Predictor, Tower
from resobj_d2.options import Option
from resobj_d2.structures import LevelMaps

from .predictors import KernelSize
from .single_cell_norm import SingleCellBatchNorm
from .towers import Channels, NumConvs

__all__ = ["SepConvStack", "SepConvTower", "SeparableConv", "SharedSepConv"]


class SeparableConv(nn.Sequential):
    """A depthwise convolution, then a 1x1 convolution with bias.

    Both are initialised with variance 1 / fan-in, which preserves the variance of the input.

    Args:
        in_channels, out_channels: widths.
        bias_value: initial bias.
        kernel_size: 3 or 1.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        bias_value: float = 0.0,
        kernel_size: int = 3,
    ) -> None:
        if kernel_size not in (1, 3):
            raise ValueError(f"PREDICTOR.KERNEL_SIZE must be 1 or 3, got {kernel_size}")
        depthwise = nn.Conv2d(
            in_channels,
            in_channels,
            kernel_size,
            padding=kernel_size // 2,
            groups=in_channels,
            bias=False,
        )
        pointwise = nn.Conv2d(in_channels, out_channels, 1)
        for layer in (depthwise, pointwise):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        nn.init.constant_(pointwise.bias, bias_value)
        super().__init__(depthwise, pointwise)


class SepConvStack(nn.Module):
    """Separable 3x3 convolutions shared by the levels, each followed by swish and, for every level,
    a separate normalisation.

    Args:
        in_channels: channels of each level; all equal, since the convolutions are shared.
        channels: width of the stack.
        num_convs: number of convolutions; 0 for none (identity).
        momentum: see :class:`SingleCellBatchNorm`.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        channels: int,
        num_convs: int,
        momentum: float = 0.01,
    ) -> None:
        super().__init__()
        if len(set(in_channels)) != 1:
            raise ValueError(
                f"layers shared over the levels need equal widths, got {list(in_channels)}"
            )
        widths = [in_channels[0]] + [channels] * num_convs
        self.convs = nn.ModuleList(
            SeparableConv(in_channels=a, out_channels=b)
            for a, b in zip(widths, widths[1:], strict=False)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(SingleCellBatchNorm(channels, momentum=momentum) for _ in in_channels)
            for _ in range(num_convs)
        )
        self.out_channels = [widths[-1]] * len(in_channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps (N, C_l, H_l, W_l) per level to as many maps with ``out_channels``."""
        for conv, norms in zip(self.convs, self.norms, strict=True):
            features = [F.silu(norm(conv(x))) for norm, x in zip(norms, features, strict=True)]
        return features


@TOWER_REGISTRY.register()
class SepConvTower(Tower):
    """A stack of separable convolutions per task.

    Args:
        in_channels: channels of each level; all equal.
        channels: width of the stacks; in EfficientDet, that of the pyramid.
        num_convs: convolutions per stack.
        momentum: see :class:`SingleCellBatchNorm`.
        tasks: the stacks to build.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        channels: Channels = 256,
        num_convs: NumConvs = 4,
        momentum: Annotated[
            float,
            Option(
                "momentum of its batch normalisation (torch's convention); short runs need 0.1",
                key="BN_MOMENTUM",
            ),
        ] = 0.01,
        tasks: Sequence[str] = ("cls", "box"),
    ) -> None:
        super().__init__()
        self.tasks = list(tasks)
        for task in tasks:
            stack = SepConvStack(
                in_channels=in_channels,
                channels=channels,
                num_convs=num_convs,
                momentum=momentum,
            )
            self.add_module(task, stack)
        self.out_channels = stack.out_channels
        self.momentum = momentum

    def run(self, task: str, features: list[Tensor]) -> list[Tensor]:
        """One task's maps."""
        return getattr(self, task)(features)

    def hidden(
        self, *, in_channels: Sequence[int], channels: Sequence[int], num_convs: int
    ) -> SepConvStack:
        """Hidden layers for a score branch in the style of this tower."""
        if len(set(channels)) != 1:
            raise ValueError(f"shared hidden layers need one width, got {list(channels)}")
        return SepConvStack(
            in_channels=in_channels,
            channels=channels[0],
            num_convs=num_convs,
            momentum=self.momentum,
        )


@PREDICTOR_REGISTRY.register()
class SharedSepConv(Predictor):
    """One separable convolution for all levels.

    Args:
        in_channels: C_l per level, all equal.
        num_anchors: A_l per level, all equal.
        channels: numbers predicted per anchor.
        bias_value: initial bias.
        kernel_size: 3 or 1.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        num_anchors: Sequence[int],
        channels: int,
        bias_value: float = 0.0,
        kernel_size: KernelSize = 3,
    ) -> None:
        super().__init__()
        if len(set(in_channels)) != 1 or len(set(num_anchors)) != 1:
            raise ValueError(
                "SharedSepConv needs equal channels and anchors on all levels, got "
                f"{list(in_channels)} and {list(num_anchors)}; use PREDICTOR.NAME PerLevelConv"
            )
        self.channels = channels
        self.conv = SeparableConv(
            in_channels=in_channels[0],
            out_channels=num_anchors[0] * channels,
            bias_value=bias_value,
            kernel_size=kernel_size,
        )

    def maps(self, features: list[Tensor]) -> LevelMaps:
        return LevelMaps([self.conv(x) for x in features], self.channels)
