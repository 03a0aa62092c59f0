"""The last convolutions of a head, and the parts from which heads are built."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resobj_d2.modeling.build import PREDICTOR_REGISTRY
from resobj_d2.modeling.contracts import Predictor
from resobj_d2.options import Option
from resobj_d2.structures import LevelMaps

__all__ = ["HeadParts", "KernelSize", "PerLevelConv", "SharedConv", "init_conv", "prior_bias"]

KernelSize = Annotated[int, Option("3 or 1", key="KERNEL_SIZE")]


def init_conv(module: nn.Module, *, bias: float = 0.0) -> None:
    """Weights N(0, 0.01) and a constant bias for every convolution (RetinaNet, section 4.1)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, mean=0.0, std=0.01)
            nn.init.constant_(layer.bias, bias)


def prior_bias(prior_prob: float, num_classes: int) -> float:
    """The logit of a predictor's initial score.

    Args:
        prior_prob: that score, in (0, 1); 0 means ``1 / num_classes``, at most one half (a single
            class would otherwise start at an infinite logit).
    """
    if not 0 <= prior_prob < 1:
        raise ValueError(f"PRIOR_PROB must be in [0, 1), got {prior_prob}")
    prob = prior_prob or min(1.0 / num_classes, 0.5)
    return -math.log((1 - prob) / prob)


@PREDICTOR_REGISTRY.register()
class SharedConv(Predictor, nn.Conv2d):
    """One convolution for all levels, as in RetinaNet.

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
        if len(set(in_channels)) != 1 or len(set(num_anchors)) != 1:
            raise ValueError(
                "SharedConv needs equal channels and anchors on all levels, got "
                f"{list(in_channels)} and {list(num_anchors)}; use PREDICTOR.NAME PerLevelConv"
            )
        padding = _odd_kernel(kernel_size) // 2
        super().__init__(
            in_channels[0], num_anchors[0] * channels, kernel_size=kernel_size, padding=padding
        )
        self.channels = channels
        init_conv(self, bias=bias_value)

    def maps(self, features: list[Tensor]) -> LevelMaps:
        return LevelMaps([nn.Conv2d.forward(self, x) for x in features], self.channels)

    @classmethod
    def sum_of(
        cls, predictors: Sequence[SharedConv], features: Sequence[list[Tensor]]
    ) -> LevelMaps:
        """Stacks the predictors into a single convolution over all features."""
        if torch.compiler.is_exporting():  # stacked maps would tie the graph to sizes
            return super().sum_of(predictors, features)
        weight = torch.cat([predictor.weight for predictor in predictors], dim=1)
        bias = torch.stack([predictor.bias for predictor in predictors]).sum(dim=0)
        levels = [torch.cat(maps, dim=1) for maps in zip(*features, strict=True)]
        maps = [F.conv2d(x, weight, bias, padding=predictors[0].padding) for x in levels]
        return LevelMaps(maps, predictors[0].channels)


@PREDICTOR_REGISTRY.register()
class PerLevelConv(Predictor):
    """A separate convolution per level, as in SSD and YOLOv3; Xavier-uniform weights.

    Args:
        in_channels: C_l per level.
        num_anchors: A_l per level.
        channels, bias_value, kernel_size: see :class:`SharedConv`.
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
        self.channels = channels
        padding = _odd_kernel(kernel_size) // 2
        self.levels = nn.ModuleList(
            nn.Conv2d(width, anchors * channels, kernel_size, padding=padding)
            for width, anchors in zip(in_channels, num_anchors, strict=True)
        )
        for layer in self.levels:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.constant_(layer.bias, bias_value)

    def maps(self, features: list[Tensor]) -> LevelMaps:
        levels = [layer(x) for layer, x in zip(self.levels, features, strict=True)]
        return LevelMaps(levels, self.channels)


def _odd_kernel(kernel_size: int) -> int:
    if kernel_size not in (1, 3):
        raise ValueError(f"PREDICTOR.KERNEL_SIZE must be 1 or 3, got {kernel_size}")
    return kernel_size


@dataclass(frozen=True, kw_only=True)
class HeadParts:
    """The parts from which stages and score branches build their layers.

    Attributes:
        in_channels: channels of the tower, per level.
        num_anchors: A_l per level.
        make_predictor: a predictor class, possibly with some arguments bound.
        make_hidden: ``make_hidden(in_channels=, channels=, num_convs=)``, with a list per level,
            makes a module that maps one map per level to one with ``out_channels`` per level.
    """

    in_channels: Sequence[int]
    num_anchors: Sequence[int]
    make_predictor: Callable[..., Predictor]
    make_hidden: Callable[..., nn.Module]

    def predictor(
        self, *, channels: int, bias: float = 0.0, in_channels: Sequence[int] | None = None
    ) -> Predictor:
        """A predictor of ``channels`` numbers per anchor, on the tower or on ``in_channels``."""
        return self.make_predictor(
            in_channels=list(in_channels or self.in_channels),
            num_anchors=self.num_anchors,
            channels=channels,
            bias_value=bias,
        )

    def hidden(
        self,
        *,
        num_convs: int,
        channels: int | None = None,
        in_channels: Sequence[int] | None = None,
    ) -> nn.Module:
        """Hidden layers of one width, or of the width of their input, on every level."""
        before = list(in_channels or self.in_channels)
        widths = before if channels is None else [channels] * len(before)
        return self.make_hidden(in_channels=before, channels=widths, num_convs=num_convs)
