"""Focal loss from integer labels in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sigmoid_focal_loss(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """``-a_t (1 - p_t)^gamma log p_t`` (RetinaNet, Eq. 5), summed over anchors and classes.

    See :func:`resobj_d2.ops.sigmoid_focal_loss`.
    """
    counts, is_class = _targets(logits, labels, mask)
    # Logits outside the mask are replaced rather than multiplied by zero, so that no NaN leaks.
    logits = torch.where(counts, logits, logits.new_zeros(()))
    # 1 - p_t = sigmoid(wrong), the logit of the wrong answer. binary_cross_entropy_with_logits
    # suffers from cancellation on easy negatives, of which there are many: 0.3 % at a logit of -9.
    wrong = torch.where(is_class, -logits, logits)
    loss = -F.logsigmoid(-wrong)
    if gamma != 0:
        loss = loss * torch.sigmoid(wrong) ** gamma
    return (loss * _weights(logits, is_class, alpha) * counts).sum()


def sigmoid_focal_loss_backward(
    grad_loss: Tensor,
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    alpha: float,
    gamma: float,
) -> Tensor:
    """Gradient of ``grad_loss * loss`` with respect to the logits."""
    counts, is_class = _targets(logits, labels, mask)
    wrong = torch.where(is_class, -logits, logits)
    probability = torch.sigmoid(wrong)
    slope = probability
    if gamma != 0:
        slope = slope - gamma * torch.sigmoid(-wrong) * F.logsigmoid(-wrong)
        slope = slope * probability**gamma
    slope = torch.where(is_class, -slope, slope) * _weights(logits, is_class, alpha) * grad_loss
    return torch.where(counts, slope, slope.new_zeros(()))


def _targets(logits: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(..., 1) whether an anchor counts, and (..., K) whether it has that class."""
    counts = labels >= 0 if mask is None else (labels >= 0) & mask
    classes = torch.arange(logits.shape[-1], device=logits.device)
    return counts[..., None], labels[..., None] == classes


def _weights(logits: Tensor, is_class: Tensor, alpha: float) -> Tensor:
    if alpha < 0:
        return logits.new_ones(())
    return torch.where(is_class, logits.new_full((), alpha), logits.new_full((), 1 - alpha))
