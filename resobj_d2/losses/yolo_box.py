"""YOLOv3's box loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import BoxLoss
from .build import BOX_LOSS_REGISTRY

__all__ = ["YOLOBoxLoss"]


@BOX_LOSS_REGISTRY.register()
class YOLOBoxLoss(BoxLoss):
    """Cross entropy for the position in the cell, half the squared difference for the log-size.

    Its gradients are those that Darknet specifies in place of a loss: ``sigmoid(t) - sigmoid(t*)``
    for tx and ty, ``t - t*`` for tw and th, each times the anchor's weight. For use with
    ``YOLOCoder``. The loss of a perfect prediction is not 0 but the entropy of its target.
    """

    compares = "cell_deltas"
    takes_weights = True

    def __call__(
        self, pred: Tensor, target: Tensor, mask: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """The float32 sum over the rows in ``mask``.

        Args:
            pred, target: (..., 4) deltas from ``YOLOCoder``.
            mask: (...) bool, the rows that count.
            weights: (...) factor of each row; None means 1.
        """
        zero = pred.new_zeros((), dtype=torch.float32)
        pred = torch.where(mask[..., None], pred.float(), zero)
        target = torch.where(mask[..., None], target.float(), zero)
        factor = mask.float() if weights is None else torch.where(mask, weights.float(), zero)
        place = F.binary_cross_entropy_with_logits(
            pred[..., :2], torch.sigmoid(target[..., :2]), reduction="none"
        )
        size = 0.5 * (pred[..., 2:] - target[..., 2:]) ** 2
        return ((place + size).sum(dim=-1) * factor).sum()
