"""Focal loss from class labels, or from soft targets, in plain torch."""

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
    return elementwise_focal_loss(logits, labels, mask, alpha, gamma).sum()


def elementwise_focal_loss(
    logits: Tensor, labels: Tensor, mask: Tensor | None, alpha: float, gamma: float
) -> Tensor:
    """(..., K) the terms of the sum; 0 for what does not count."""
    counts, is_class = _targets(logits, labels, mask)
    # Logits outside the mask are replaced rather than multiplied by zero, so that no NaN leaks.
    logits = torch.where(counts, logits, logits.new_zeros(()))
    # 1 - p_t = sigmoid(wrong), the logit of the wrong answer. binary_cross_entropy_with_logits
    # suffers from cancellation on easy negatives, of which there are many: 0.3 % at a logit of -9.
    wrong = torch.where(is_class, -logits, logits)
    loss = -F.logsigmoid(-wrong) * _focus(torch.sigmoid(wrong), gamma)
    return loss * _weights(logits, is_class, alpha) * counts


def elementwise_soft_focal_loss(
    logits: Tensor, targets: Tensor, mask: Tensor | None, alpha: float, gamma: float
) -> Tensor:
    """(..., K) the focal loss for targets (..., K) in [0, 1]; 0 for what does not count."""
    counts = counted(targets, mask)
    zero = logits.new_zeros(())
    logits, targets = torch.where(counts, logits, zero), torch.where(counts, targets, zero)
    cross_entropy = -(targets * F.logsigmoid(logits) + (1 - targets) * F.logsigmoid(-logits))
    wrong = targets * torch.sigmoid(-logits) + (1 - targets) * torch.sigmoid(logits)
    loss = cross_entropy * _focus(wrong, gamma)
    if alpha >= 0:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return loss * counts


def counted(labels: Tensor, mask: Tensor | None) -> Tensor:
    """(..., 1) the anchors that count or, for soft targets, (..., K) the elements."""
    is_soft = labels.is_floating_point()
    # "Not below", so that a target that is NaN shows in the loss.
    counts = ~(labels < 0) if is_soft else (labels >= 0)[..., None]
    return counts if mask is None else counts & mask[..., None]


def _focus(wrong: Tensor, gamma: float) -> Tensor:
    """``wrong^gamma`` with a finite derivative at 0."""
    if gamma == 0:
        return wrong.new_ones(())
    return wrong.clamp(min=torch.finfo(wrong.dtype).tiny) ** gamma


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
    classes = torch.arange(logits.shape[-1], device=logits.device)
    return counted(labels, mask), labels[..., None] == classes


def _weights(logits: Tensor, is_class: Tensor, alpha: float) -> Tensor:
    if alpha < 0:
        return logits.new_ones(())
    return torch.where(is_class, logits.new_full((), alpha), logits.new_full((), 1 - alpha))
