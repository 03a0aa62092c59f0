"""Balanced L1 in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def balanced_l1_loss(
    pred: Tensor, target: Tensor, alpha: float = 0.5, gamma: float = 1.5, beta: float = 1.0
) -> Tensor:
    """Sum of balanced L1 (Libra R-CNN, Eq. 8 and 9), stretched by ``beta``.

    See :func:`resobj_d2.ops.balanced_l1_loss`.
    """
    return elementwise_balanced_l1_loss(pred, target, alpha, gamma, beta).sum()


def elementwise_balanced_l1_loss(
    pred: Tensor, target: Tensor, alpha: float, gamma: float, beta: float
) -> Tensor:
    """The terms of the sum, in the shape of ``pred``."""
    b = math.expm1(gamma / alpha)
    difference = pred - target
    u = difference * _sign(difference) / beta
    # Replaced where it does not count, so that its gradient is not NaN for infinite differences.
    near = torch.where(u < 1, u, torch.zeros_like(u))
    curved = alpha / b * (b * near + 1) * torch.log1p(b * near) - alpha * near
    straight = gamma * u + gamma / b - alpha
    return beta * torch.where(u < 1, curved, straight)


def balanced_l1_loss_backward(
    grad_loss: Tensor, pred: Tensor, target: Tensor, alpha: float, gamma: float, beta: float
) -> Tensor:
    """Gradient of ``grad_loss * loss`` with respect to ``pred``."""
    b = math.expm1(gamma / alpha)
    difference = pred - target
    u = difference.abs() / beta
    slope = torch.where(u < 1, alpha * torch.log1p(b * u), u.new_full((), gamma))
    return grad_loss * slope * _sign(difference)


def _sign(difference: Tensor) -> Tensor:
    """-1, 0 or 1, and NaN for NaN, which torch.sign takes for 0."""
    return torch.where(difference.isnan(), difference, difference.sign()).detach()
