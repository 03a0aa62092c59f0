"""Divisors of the summed losses. Nothing else in the package divides or all-reduces a loss."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.distributed as dist
from torch import Tensor

from resobj_d2.options import Option
from resobj_d2.precision import Float32Buffers

from .base import Normalizer
from .build import NORMALIZER_REGISTRY
from .parts import over_parts, per_part

__all__ = [
    "ForegroundCount",
    "ForegroundCountPlusOne",
    "ForegroundEMA",
    "ImageCount",
    "TrainedCount",
    "weight_sum",
]


def _batch_count(count: Tensor, *, at_least: float = 0.0) -> Tensor:
    """A scalar of the whole batch: the sum over its parts, the mean over all processes.

    The mean matches DDP, which averages gradients. ``at_least`` applies to each process.
    """
    count = over_parts(count).clamp(min=at_least)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        count = count.clone()
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count


def weight_sum(weights: Tensor, mask: Tensor) -> Tensor:
    """The divisor of a sum of weighted losses: the weights' sum (mean over processes), at least 1.

    Args:
        weights: (...) without a gradient.
        mask: (...) bool, the rows that count.
    """
    total = torch.where(mask, weights.float(), 0.0).sum()
    return per_part(_batch_count(total).clamp(min=1.0))


@NORMALIZER_REGISTRY.register()
class ForegroundCount(Normalizer):
    """Number of foreground anchors (mean over processes), at least 1 (RetinaNet, section 4)."""

    def forward(self, num_foreground: Tensor, num_trained: Tensor, num_images: int) -> Tensor:
        return per_part(_batch_count(num_foreground.float()).clamp(min=1.0))


@NORMALIZER_REGISTRY.register()
class ForegroundCountPlusOne(Normalizer):
    """Number of foreground anchors (mean over processes) plus one, as in EfficientDet."""

    def forward(self, num_foreground: Tensor, num_trained: Tensor, num_images: int) -> Tensor:
        return per_part(_batch_count(num_foreground.float()) + 1.0)


@NORMALIZER_REGISTRY.register()
class ImageCount(Normalizer):
    """Number of images in the batch: losses become a mean over images, as in Darknet."""

    def forward(self, num_foreground: Tensor, num_trained: Tensor, num_images: int) -> Tensor:
        count = num_foreground.new_full((), num_images, dtype=torch.float32)
        return per_part(_batch_count(count))


@NORMALIZER_REGISTRY.register()
class TrainedCount(Normalizer):
    """Number of anchors that the sampler kept (mean over processes), at least 1; for OHEM etc."""

    def forward(self, num_foreground: Tensor, num_trained: Tensor, num_images: int) -> Tensor:
        return per_part(_batch_count(num_trained.float()).clamp(min=1.0))


@NORMALIZER_REGISTRY.register()
class ForegroundEMA(Float32Buffers, Normalizer):
    """Exponential moving average of the foreground count, as in Detectron2's RetinaNet.

    Unlike there it is part of ``state_dict`` (so a resumed run keeps its scale) and equal on all
    processes. It stays on the device, without host synchronisation. It is updated once per
    training forward, and every loss of that iteration is divided by the same value.
    """

    def __init__(
        self,
        *,
        initial: Annotated[float, Option("average before the first batch")] = 100.0,
        momentum: Annotated[float, Option("weight of the previous average")] = 0.9,
    ) -> None:
        super().__init__()
        if initial <= 0 or not 0 <= momentum < 1:
            raise ValueError(
                "NORMALIZER.INITIAL must be positive and MOMENTUM in [0, 1), "
                f"got {initial} and {momentum}"
            )
        self.momentum = momentum
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor(float(initial)))

    def forward(self, num_foreground: Tensor, num_trained: Tensor, num_images: int) -> Tensor:
        """Returns the updated average of ``num_foreground``; see the base class."""
        count = _batch_count(num_foreground.float(), at_least=1.0)
        # Not in place: the loss graph holds the value it was divided by.
        self.mean = self.momentum * self.mean + (1 - self.momentum) * count
        return per_part(self.mean)
