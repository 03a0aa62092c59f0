"""Box regression losses of the dense detectors: sums over the anchors of a mask, in float32."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from resobj_d2 import ops
from resobj_d2.options import Option

from .base import BoxLoss
from .build import BOX_LOSS_REGISTRY

__all__ = ["BalancedL1Loss", "L1Loss", "SmoothL1Loss", "smooth_l1_loss"]


def smooth_l1_loss(pred: Tensor, target: Tensor, mask: Tensor, *, beta: float = 0.1) -> Tensor:
    """Smooth L1 summed over the rows of ``mask`` (Fast R-CNN, Eq. 3, linear from ``beta``).

    Args:
        pred, target: (..., 4).
        mask: (...) bool, the rows that count.
        beta: |pred - target| at which quadratic turns into linear; 0 gives plain L1.
    """
    zero = pred.new_zeros((), dtype=torch.float32)
    pred = torch.where(mask[..., None], pred.float(), zero)
    target = torch.where(mask[..., None], target.float(), zero)
    distance = (pred - target).abs()
    if beta > 0:
        distance = torch.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)
    return distance.sum()


@BOX_LOSS_REGISTRY.register()
class SmoothL1Loss(BoxLoss):
    """Smooth L1 on encoded deltas; the default ``beta = 0.1`` is Detectron2's."""

    def __init__(
        self,
        *,
        beta: Annotated[
            float, Option("difference at which quadratic turns into linear; 0 gives L1")
        ] = 0.1,
    ) -> None:
        if beta < 0:
            raise ValueError(f"BOX_LOSS.BETA must be >= 0, got {beta}")
        self.beta = beta

    def __call__(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        return smooth_l1_loss(pred, target, mask, beta=self.beta)


@BOX_LOSS_REGISTRY.register()
class L1Loss(SmoothL1Loss):
    """L1 on encoded deltas, as in RetinaNet-Conf."""

    def __init__(self) -> None:
        super().__init__(beta=0.0)


@BOX_LOSS_REGISTRY.register()
class BalancedL1Loss(BoxLoss):
    """Balanced L1 on encoded deltas (Libra R-CNN, Eq. 8 and 9).

    Args:
        alpha, gamma: as in the paper; the slope grows as ``alpha ln(b u + 1)`` up to ``gamma``.
        beta: difference at which the logarithmic part ends. The paper's loss has ``beta = 1``;
            other values stretch it.
        mmdet_form: apply ``beta`` as mmdetection does instead of stretching. The slope then jumps
            from 0 to ``alpha (1 - beta) / beta`` at a difference of 0 (4 with ``beta = 0.11``).
            For comparison with models trained that way.
    """

    def __init__(
        self,
        *,
        alpha: Annotated[
            float,
            Option(
                "weight of small differences",
                key="BALANCED_ALPHA",
                source="Libra R-CNN, Eq. 8",
            ),
        ] = 0.5,
        gamma: Annotated[
            float,
            Option("largest slope", key="BALANCED_GAMMA", source="Libra R-CNN, Eq. 8"),
        ] = 1.5,
        beta: Annotated[
            float,
            Option("difference above which the loss is linear", key="BALANCED_BETA"),
        ] = 1.0,
        mmdet_form: Annotated[
            bool,
            Option("use BALANCED_BETA as mmdetection does (the slope jumps at 0)"),
        ] = False,
    ) -> None:
        if alpha <= 0 or gamma <= 0 or beta <= 0:
            raise ValueError(
                "BOX_LOSS.BALANCED_ALPHA, BALANCED_GAMMA and BALANCED_BETA must be positive, "
                f"got {alpha}, {gamma} and {beta}"
            )
        self.alpha = alpha
        self.gamma = gamma
        self.beta = beta
        self.mmdet_form = mmdet_form

    def __call__(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        # Where both are equal, loss and gradient are 0.
        pred = torch.where(mask[..., None], pred.float(), 0.0)
        target = torch.where(mask[..., None], target.float(), 0.0)
        if self.mmdet_form:
            return self._mmdet_form(pred - target)
        return ops.balanced_l1_loss(
            pred, target, alpha=self.alpha, gamma=self.gamma, beta=self.beta
        )

    def _mmdet_form(self, difference: Tensor) -> Tensor:
        """Sum over all elements."""
        b = math.expm1(self.gamma / self.alpha)
        distance = difference.abs()
        x = distance.clamp(max=self.beta)
        curved = self.alpha / b * (b * x + 1) * torch.log1p(b * x / self.beta) - self.alpha * x
        return (curved + self.gamma * (distance - x)).sum()
