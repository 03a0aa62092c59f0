"""Class losses whose target for an object's class is the quality of its box instead of 1."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from resobj_d2.options import Option

from .base import SigmoidScores
from .build import CLS_LOSS_REGISTRY

__all__ = ["QualityFocalLoss", "VarifocalLoss"]


class _QualityScores(SigmoidScores):
    """Sum over anchors and classes; the target of a foreground anchor's class is its quality."""

    takes_quality = True

    def __call__(
        self, logits: Tensor, labels: Tensor, mask: Tensor, quality: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            logits: (N, R, K).
            labels, mask: see the base class.
            quality: (N, R) in [0, 1], without gradient; only read at foreground. None for 1.
        """
        quality = torch.ones(labels.shape, device=logits.device) if quality is None else quality
        num_classes = logits.shape[-1]
        used = mask & (labels >= 0)
        foreground = used & (labels < num_classes)
        # Replaced before the arithmetic: 0 times the gradient of a NaN is NaN.
        logits = torch.where(used[..., None], logits.float(), 0.0)
        negative = torch.where(used[..., None], self.negative(logits), 0.0).sum()
        row = labels.clamp(0, num_classes - 1)[..., None]
        own = torch.where(foreground, logits.gather(-1, row)[..., 0], 0.0)
        target = torch.where(foreground, quality.float(), 0.0)
        change = self.positive(own, target) - self.negative(own)
        return negative + torch.where(foreground, change, 0.0).sum()

    def per_anchor(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, R) loss of each anchor, for ranking, as if every quality were 1.

        Ignored anchors count as background.
        """
        is_class = labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)
        logits = logits.float()
        positive = self.positive(logits, torch.ones_like(logits))
        return torch.where(is_class, positive, self.negative(logits)).sum(dim=-1)

    def negative(self, logits: Tensor) -> Tensor:
        """Loss of each logit whose target is 0."""
        raise TypeError(f"{type(self).__name__} must define negative")

    def positive(self, logits: Tensor, quality: Tensor) -> Tensor:
        """Loss of each logit whose target is ``quality``."""
        raise TypeError(f"{type(self).__name__} must define positive")


@CLS_LOSS_REGISTRY.register()
class QualityFocalLoss(_QualityScores):
    """``|y - s|^beta BCE(s, y)`` (Li et al. 2020, "Generalized Focal Loss", Eq. 2).

    y is the quality for the anchor's class, by default the IoU of its predicted box, and 0 for all
    others: the score predicts class and quality jointly.
    """

    def __init__(
        self,
        *,
        beta: Annotated[
            float,
            Option(
                "focusing exponent, at least 1",
                key="QFL_BETA",
                source="Generalized Focal Loss, Eq. 2",
            ),
        ] = 2.0,
    ) -> None:
        if beta < 1:
            raise ValueError(f"CLS_LOSS.QFL_BETA must be at least 1, got {beta}")
        self.beta = beta

    def negative(self, logits: Tensor) -> Tensor:
        """Loss of each logit whose target is 0."""
        return torch.sigmoid(logits) ** self.beta * F.softplus(logits)

    def positive(self, logits: Tensor, quality: Tensor) -> Tensor:
        """Loss of each logit whose target is ``quality``."""
        distance = (quality - torch.sigmoid(logits)).abs()
        return distance**self.beta * (F.softplus(logits) - quality * logits)


@CLS_LOSS_REGISTRY.register()
class VarifocalLoss(_QualityScores):
    """``q BCE(s, q)`` for the anchor's class, focal loss for others (VarifocalNet, 2021, Eq. 2).

    q is the quality for the anchor's class, by default the IoU of its predicted box: good examples
    count more, and none of them less for being easy. With a quality of 0 it is a negative.
    """

    def __init__(
        self,
        *,
        alpha: Annotated[
            float,
            Option("weight of negatives", key="VARIFOCAL_ALPHA", source="VarifocalNet, Eq. 2"),
        ] = 0.75,
        gamma: Annotated[
            float,
            Option(
                "focusing exponent of negatives",
                key="VARIFOCAL_GAMMA",
                source="VarifocalNet, Eq. 2",
            ),
        ] = 2.0,
    ) -> None:
        if alpha <= 0 or gamma < 1:  # below 1 the gradient has no limit at probability 0
            raise ValueError(
                "CLS_LOSS.VARIFOCAL_ALPHA must be positive and VARIFOCAL_GAMMA at least 1, "
                f"got {alpha} and {gamma}"
            )
        self.alpha = alpha
        self.gamma = gamma

    def negative(self, logits: Tensor) -> Tensor:
        """Loss of each logit whose target is 0."""
        return self.alpha * torch.sigmoid(logits) ** self.gamma * F.softplus(logits)

    def positive(self, logits: Tensor, quality: Tensor) -> Tensor:
        """Loss of each logit whose target is ``quality``."""
        positive = quality * (F.softplus(logits) - quality * logits)
        return torch.where(quality == 0, self.negative(logits), positive)
