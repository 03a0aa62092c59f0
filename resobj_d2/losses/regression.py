"""Box regression losses of the dense detectors: sums over the anchors of a mask, in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from .build import BOX_LOSS_REGISTRY

__all__ = ["SmoothL1Loss", "smooth_l1_loss"]


def smooth_l1_loss(pred: Tensor, target: Tensor, mask: Tensor, *, beta: float = 0.1) -> Tensor:
    """Smooth L1 summed over the rows of ``mask`` (Fast R-CNN, Eq. 3, with the bend at ``beta``).

    Args:
        pred, target: (..., 4).
        mask: (...) bool, the rows that count.
        beta: |pred - target| at which the parabola becomes a line; 0 gives plain L1.
    """
    zero = pred.new_zeros((), dtype=torch.float32)
    pred = torch.where(mask[..., None], pred.float(), zero)
    target = torch.where(mask[..., None], target.float(), zero)
    distance = (pred - target).abs()
    if beta > 0:
        distance = torch.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)
    return distance.sum()


@BOX_LOSS_REGISTRY.register()
class SmoothL1Loss:
    """Smooth L1 on encoded deltas, Detectron2's default with ``beta = 0.1``."""

    space = "deltas"

    def __init__(self, *, beta: float = 0.1) -> None:
        if beta < 0:
            raise ValueError(f"BOX_LOSS.BETA must be >= 0, got {beta}")
        self.beta = beta

    @classmethod
    def from_config(cls, node) -> SmoothL1Loss:
        return cls(beta=node.BETA)

    def __call__(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        return smooth_l1_loss(pred, target, mask, beta=self.beta)
