"""Cross entropy over the classes and background."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from resobj_d2.structures import LevelMaps

from .base import ClassLoss
from .build import CLS_LOSS_REGISTRY

__all__ = ["SoftmaxCE"]

# The largest float32 below one; its logit is finite.
LARGEST = 1 - 2**-24


@CLS_LOSS_REGISTRY.register()
class SoftmaxCE(ClassLoss):
    """Softmax cross entropy over K classes and background, which is label K (SSD, Eq. 3)."""

    def __call__(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            logits: (..., K + 1), background last.
            labels: (...) int64; K is background, anchors with a negative label are ignored.
            mask: (...) bool, the anchors that count.

        Returns:
            Scalar float32 sum; gradients are zero outside ``mask``, whatever the logits there.
        """
        used = mask & (labels >= 0)
        # Mask the logits, not the loss: a NaN times a zero gradient is NaN.
        logits = torch.where(used[..., None], logits, 0.0)
        return torch.where(used, self.per_anchor(logits, labels), 0.0).sum()

    def per_anchor(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(...) loss of each anchor; the values of ignored anchors are meaningless."""
        index = labels.clamp(min=0)[..., None]
        return -F.log_softmax(logits.float(), dim=-1).gather(-1, index)[..., 0]

    @staticmethod
    def num_logits(num_classes: int) -> int:
        """K + 1: the classes and background."""
        return num_classes + 1

    @staticmethod
    def sigmoid_logits(maps: LevelMaps) -> LevelMaps:
        """Logits, in float32, whose sigmoids are the softmax probabilities of the K classes.

        A probability that rounds to 1 is lowered to the next smaller float32, so that its logit is
        finite.
        """
        classes = maps.channels - 1
        levels = []
        for x in maps.levels:
            per_anchor = x.float().unflatten(1, (-1, maps.channels))
            log_p = F.log_softmax(per_anchor, dim=2)[:, :, :classes]
            logits = log_p - torch.log1p(-log_p.exp().clamp(max=LARGEST))
            levels.append(logits.flatten(1, 2))
        return LevelMaps(levels, classes)
