"""Normalisation of maps that may have a single cell."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SingleCellBatchNorm", "SingleCellGroupNorm", "take_single_cells"]


class SingleCellBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with eps 1e-3.

    The coarsest level of a small image has one cell, so a single image gives one value per channel
    and no variance. Such a map is normalised by the running statistics, in training too, without
    updating them; torch's layer raises an error instead.

    Args:
        channels: number of channels of the maps.
        momentum: of the running statistics, in (0, 1]; EfficientDet uses 0.01 (TensorFlow's 0.99).
            A run of a few hundred iterations needs a larger one.
    """

    def __init__(self, channels: int, *, momentum: float = 0.01) -> None:
        if not 0 < momentum <= 1:
            raise ValueError(f"BN_MOMENTUM must be in (0, 1], got {momentum}")
        super().__init__(channels, eps=1e-3, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (N, C, H, W), keeping its shape."""
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


class SingleCellGroupNorm(nn.GroupNorm):
    """Group normalisation of an image alone as in a batch.

    A group of one channel has one value on a map of one cell, which is normalised to zero: the
    bias is left. torch's layer does so in a batch, but raises an error for a single image.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (N, C, ...), keeping its shape."""
        if x.numel() == self.num_groups:
            return super().forward(torch.cat([x, x]))[:1]
        return super().forward(x)


def take_single_cells(model: nn.Module) -> nn.Module:
    """The model, whose normalisation layers, made by anyone, now also normalise maps of one cell.

    Torch's own batch normalisation, and its group normalisation with one channel per group, get
    the classes above. They keep their parameters, statistics and eps.
    """
    for layer in model.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = SingleCellBatchNorm
        elif type(layer) is nn.GroupNorm and layer.num_groups == layer.num_channels:
            layer.__class__ = SingleCellGroupNorm
    return model
