"""Classification losses of the dense detectors: sums over the anchors of a mask, in float32."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from resobj_d2 import ops
from resobj_d2.options import Option

from .base import SigmoidScores
from .build import CLS_LOSS_REGISTRY

__all__ = ["SigmoidCE", "SigmoidFocalLoss", "sigmoid_focal_loss"]


def sigmoid_focal_loss(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    reduction: str = "sum",
) -> Tensor:
    """Focal loss with positive and negative terms, ``-a_t (1 - p_t)^gamma log p_t``, in float32.

    See RetinaNet, Eq. 5.

    Args:
        logits: (..., K), one logit per class.
        labels: (...) int64; K or more is background (all classes are negative). Anchors with a
            negative label are ignored, even inside ``mask``.
        mask: (...) bool, the anchors that count; default all.
        alpha: weight of the positive class, with ``1 - alpha`` for the others; a negative value
            disables the weighting.
        gamma: focusing exponent; 0 gives alpha-weighted cross entropy.
        weight, reduction: see :func:`resobj_d2.ops.sigmoid_focal_loss`.

    Returns:
        Scalar float32 sum; gradients are zero outside ``mask``, whatever the logits there.
    """
    return ops.sigmoid_focal_loss(
        logits.float(),
        labels,
        mask,
        alpha=alpha,
        gamma=gamma,
        weight=weight,
        reduction=reduction,
    )


@CLS_LOSS_REGISTRY.register()
class SigmoidFocalLoss(SigmoidScores):
    """Focal loss (Lin et al., RetinaNet) as a classification loss slot."""

    def __init__(
        self,
        *,
        alpha: Annotated[
            float,
            Option(
                "weight of the anchor's class, 1 - alpha for the others; negative disables it",
                key="FOCAL_ALPHA",
                source="RetinaNet, Eq. 5",
            ),
        ] = 0.25,
        gamma: Annotated[
            float,
            Option(
                "focusing exponent; 0 gives cross entropy",
                key="FOCAL_GAMMA",
                source="RetinaNet, Eq. 5",
            ),
        ] = 2.0,
    ) -> None:
        if gamma < 0:
            raise ValueError(f"FOCAL_GAMMA must be >= 0, got {gamma}")
        if alpha > 1:
            raise ValueError(f"FOCAL_ALPHA must be <= 1, got {alpha}")
        self.alpha = alpha
        self.gamma = gamma

    def __call__(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        return sigmoid_focal_loss(logits, labels, mask, alpha=self.alpha, gamma=self.gamma)

    def per_anchor(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, R) loss of each anchor, for ranking; ignored anchors count as background."""
        return _focal_per_anchor(logits, labels, alpha=self.alpha, gamma=self.gamma)


@CLS_LOSS_REGISTRY.register()
class SigmoidCE(SigmoidScores):
    """Binary cross entropy over K sigmoids.

    The class loss of RetinaNet-Obj and ResObj, where the mask restricts it to foreground anchors
    (Residual Objectness, Eq. 3).
    """

    def __call__(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        return sigmoid_focal_loss(logits, labels, mask, alpha=-1.0, gamma=0.0)

    def per_anchor(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, R) loss of each anchor, for ranking; ignored anchors count as background."""
        return _focal_per_anchor(logits, labels, alpha=-1.0, gamma=0.0)


def _focal_per_anchor(logits: Tensor, labels: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """(N, R) focal loss of each anchor, summed over the K classes; allocates (N, R, K)."""
    classes = torch.arange(logits.shape[-1], device=logits.device)
    is_class = labels[..., None] == classes
    wrong = torch.where(is_class, -logits.float(), logits.float())
    loss = torch.sigmoid(wrong) ** gamma * F.softplus(wrong)
    if alpha >= 0:
        loss = torch.where(is_class, alpha, 1 - alpha) * loss
    return loss.sum(dim=-1)
