"""The last convolutions of a head."""

from __future__ import annotations

import math

from torch import Tensor, nn

from resobj_d2.structures import LevelMaps

__all__ = ["SharedConv", "init_conv", "prior_bias"]


def init_conv(module: nn.Module, *, bias: float = 0.0) -> None:
    """Weights N(0, 0.01), constant bias, in every convolution (RetinaNet, section 4.1)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, mean=0.0, std=0.01)
            nn.init.constant_(layer.bias, bias)


def prior_bias(prior_prob: float, num_classes: int) -> float:
    """The logit of a predictor's initial score.

    Args:
        prior_prob: that score in (0, 1), or 0 for ``1 / num_classes``, at most one half (one
            class would otherwise start at an infinite logit).
    """
    if not 0 <= prior_prob < 1:
        raise ValueError(f"PRIOR_PROB must be in [0, 1), got {prior_prob}")
    prob = prior_prob or min(1.0 / num_classes, 0.5)
    return -math.log((1 - prob) / prob)


class SharedConv(nn.Conv2d):
    """One 3x3 convolution for all levels.

    Args:
        num_anchors: A, the same on every level.
        channels: numbers predicted per anchor.
        bias_value: initial bias.
    """

    def __init__(
        self, *, in_channels: int, num_anchors: int, channels: int, bias_value: float = 0.0
    ) -> None:
        super().__init__(in_channels, num_anchors * channels, kernel_size=3, padding=1)
        self.channels = channels
        init_conv(self, bias=bias_value)

    def forward(self, features: list[Tensor]) -> Tensor:
        """List of (N, C, H_l, W_l) to (N, R, channels), flattened over levels and anchors."""
        return self.maps(features).flatten()

    def maps(self, features: list[Tensor]) -> LevelMaps:
        """List of (N, C, H_l, W_l) to (N, A * channels, H_l, W_l) of each."""
        return LevelMaps([super(SharedConv, self).forward(x) for x in features], self.channels)
