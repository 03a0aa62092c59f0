"""Cross entropy over the classes and the background."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from resobj_d2.structures import LevelMaps

from .base import ClassLoss
from .build import CLS_LOSS_REGISTRY

__all__ = ["SoftmaxCE"]

# The largest probability below one in float32, whose logit is finite.
LARGEST = 1 - 2**-24


@CLS_LOSS_REGISTRY.register()
class SoftmaxCE(ClassLoss):
    """Softmax cross entropy over K classes and the background, label K (SSD, Eq. 3)."""

    def __call__(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            logits: (..., K + 1), the background last.
            labels: (...) int64; K is background, an anchor with a negative one is ignored.
            mask: (...) bool, the anchors that count.

        Returns:
            Scalar float32 sum; gradients are zero outside ``mask``, whatever the logits there.
        """
        used = mask & (labels >= 0)
        # Not the loss but the logits: a NaN times a gradient of zero would be NaN.
        logits = torch.where(used[..., None], logits.float(), 0.0)
        return torch.where(used, self.per_anchor(logits, labels), 0.0).sum()

    def per_anchor(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(...) loss of each anchor; that of an ignored one means nothing."""
        index = labels.clamp(min=0)[..., None]
        return -F.log_softmax(logits.float(), dim=-1).gather(-1, index)[..., 0]

    @staticmethod
    def num_logits(num_classes: int) -> int:
        """Logits per anchor: the classes and the background."""
        return num_classes + 1

    @staticmethod
    def sigmoid_logits(maps: LevelMaps) -> LevelMaps:
        """What a sigmoid turns into the softmax probabilities of the K classes, in float32.

        A probability that rounds to one has the logit of the number before it, so that nothing
        is infinite.
        """
        classes = maps.channels - 1
        levels = []
        for x in maps.levels:
            per_anchor = x.float().unflatten(1, (-1, maps.channels))
            log_p = F.log_softmax(per_anchor, dim=2)[:, :, :classes]
            logits = log_p - torch.log1p(-log_p.exp().clamp(max=LARGEST))
            levels.append(logits.flatten(1, 2))
        return LevelMaps(levels, classes)
