"""Box losses on decoded boxes: sums over the anchors of a mask, in float32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from resobj_d2 import ops

from .base import BoxLoss
from .build import BOX_LOSS_REGISTRY

__all__ = ["CIoULoss", "DIoULoss", "GIoULoss", "IoULoss", "NegativeLogIoULoss"]


def _aligned_iou(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """(P,) IoU of each pair; 1, without a gradient, where ``mask`` is False.

    A non-finite pair inside the mask gives NaN, so that a broken prediction shows in the loss; the
    overlap operator alone would give a finite 0.

    Swapped corners of ``pred`` are sorted, so that such a box is pulled back instead of having a
    negative area (GIoU, Algorithm 1).
    """
    pred, target = pred.float().reshape(-1, 4), target.float().reshape(-1, 4)
    mask = mask.reshape(-1, 1)
    low, high = torch.minimum(pred[:, :2], pred[:, 2:]), torch.maximum(pred[:, :2], pred[:, 2:])
    # Pairs outside the mask, which may hold anything including NaN, are replaced by a unit square.
    unit = F.pad(pred.new_zeros(2), (0, 2), value=1.0)
    pred = torch.where(mask, torch.cat((low, high), dim=1), unit)
    target = torch.where(mask, target, unit)
    finite = (torch.isfinite(pred) & torch.isfinite(target)).all(dim=1)
    return torch.where(finite, ops.box_iou_aligned(pred, target), torch.nan)


def _weighed_sum(losses: Tensor, mask: Tensor, weights: Tensor | None) -> Tensor:
    """Sum of (P,) losses, which are 0 outside ``mask``."""
    if weights is not None:
        losses = losses * torch.where(mask, weights.float(), 0.0).reshape(-1)
    return losses.sum()


@BOX_LOSS_REGISTRY.register()
class IoULoss(BoxLoss):
    """``1 - IoU`` (Rezatofighi et al. 2019). No gradient where the boxes do not overlap."""

    compares = "boxes"
    takes_weights = True

    def __call__(
        self, pred: Tensor, target: Tensor, mask: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        return _weighed_sum(1 - _aligned_iou(pred, target, mask), mask, weights)


@BOX_LOSS_REGISTRY.register()
class NegativeLogIoULoss(BoxLoss):
    """``-ln IoU`` (Yu et al. 2016, UnitBox; FSAF). No gradient below an IoU of ``min_iou``."""

    compares = "boxes"
    takes_weights = True

    def __init__(self, *, min_iou: float = 1e-6) -> None:
        self.min_iou = min_iou

    def __call__(
        self, pred: Tensor, target: Tensor, mask: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        ious = _aligned_iou(pred, target, mask).clamp(min=self.min_iou)
        return _weighed_sum(-ious.log(), mask, weights)


@BOX_LOSS_REGISTRY.register()
class GIoULoss(BoxLoss):
    """``1 - GIoU`` (Rezatofighi et al. 2019, Algorithm 1), with a gradient without overlap too."""

    compares = "boxes"
    takes_weights = True

    def __call__(
        self, pred: Tensor, target: Tensor, mask: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        return ops.giou_loss(pred.float(), target.float(), mask, weight=weights)


@BOX_LOSS_REGISTRY.register()
class DIoULoss(BoxLoss):
    """``1 - DIoU`` (Zheng et al. 2020, Eq. 7): also pulls the centres together."""

    compares = "boxes"
    takes_weights = True

    def __call__(
        self, pred: Tensor, target: Tensor, mask: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        return ops.diou_loss(pred.float(), target.float(), mask, weight=weights)


@BOX_LOSS_REGISTRY.register()
class CIoULoss(BoxLoss):
    """``1 - CIoU`` (Zheng et al. 2020, Eq. 10): also makes the aspect ratios agree."""

    compares = "boxes"
    takes_weights = True

    def __call__(
        self, pred: Tensor, target: Tensor, mask: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        return ops.ciou_loss(pred.float(), target.float(), mask, weight=weights)
