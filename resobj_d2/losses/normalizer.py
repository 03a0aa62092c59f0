"""What divides the summed losses. Nothing else in the package divides or all-reduces a loss."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.distributed as dist
from torch import Tensor

from resobj_d2.options import Option

from .base import Normalizer
from .build import NORMALIZER_REGISTRY

__all__ = [
    "ForegroundCount",
    "ForegroundCountPlusOne",
    "ForegroundEMA",
    "ImageCount",
    "TrainedCount",
]


def _mean_over_processes(count: Tensor) -> Tensor:
    """The mean of a scalar over all processes: what DDP's gradient averaging asks for."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return count
    count = count.clone()
    dist.all_reduce(count)
    return count / dist.get_world_size()


@NORMALIZER_REGISTRY.register()
class ForegroundCount(Normalizer):
    """Foreground anchors of the batch (mean over processes), at least 1 (RetinaNet, section 4)."""

    def forward(self, num_foreground: Tensor, num_trained: Tensor, num_images: int) -> Tensor:
        return _mean_over_processes(num_foreground.float()).clamp(min=1.0)


@NORMALIZER_REGISTRY.register()
class ForegroundCountPlusOne(Normalizer):
    """Foreground anchors of the batch (mean over processes) and one more, as in EfficientDet."""

    def forward(self, num_foreground: Tensor, num_trained: Tensor, num_images: int) -> Tensor:
        return _mean_over_processes(num_foreground.float()) + 1.0


@NORMALIZER_REGISTRY.register()
class ImageCount(Normalizer):
    """Images of the batch: a mean over images of sums over anchors, as in Darknet."""

    def forward(self, num_foreground: Tensor, num_trained: Tensor, num_images: int) -> Tensor:
        return _mean_over_processes(num_foreground.new_full((), num_images, dtype=torch.float32))


@NORMALIZER_REGISTRY.register()
class TrainedCount(Normalizer):
    """Anchors that the sampler kept (mean over processes), at least 1: for OHEM and its like."""

    def forward(self, num_foreground: Tensor, num_trained: Tensor, num_images: int) -> Tensor:
        return _mean_over_processes(num_trained.float()).clamp(min=1.0)


@NORMALIZER_REGISTRY.register()
class ForegroundEMA(Normalizer):
    """Exponential mean of the foreground count, as in Detectron2's RetinaNet.

    Unlike there it is part of ``state_dict`` (a resumed run goes on with the same scale) and
    equal on all processes. It stays on the device: no host synchronisation. It is updated once
    per training forward; every loss of the iteration divides by the same value.
    """

    def __init__(
        self,
        *,
        initial: Annotated[float, Option("mean before the first batch")] = 100.0,
        momentum: Annotated[float, Option("weight of the mean so far")] = 0.9,
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
        """Scalar counts of this batch. Returns the updated mean of the first."""
        count = _mean_over_processes(num_foreground.float().clamp(min=1.0))
        # A new tensor, not an in-place update: the loss graph holds the value it divided by.
        self.mean = self.momentum * self.mean + (1 - self.momentum) * count
        return self.mean
