"""Losses between a predicted box quality and its target, summed over anchors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from resobj_d2.options import Option

__all__ = ["QUALITY_LOSSES", "QualityLoss"]


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    # softplus(h) - y h is BCE for a soft y; its derivative by y is -h (RetinaNet-Conf, Eq. 8).
    return F.softplus(logits) - targets * logits


QUALITY_LOSSES = ("ce", "ce_w", "l1", "smooth_l1", "l2", "gfocal")


@dataclass(frozen=True, kw_only=True)
class QualityLoss:
    """The losses of RetinaNet-Conf's Table 2 between ``sigmoid(h)`` and a target y in [0, 1].

    Attributes:
        kind: "ce": ``BCE(h, y)`` over the foreground (Eq. 9);
            "ce_w": the same, plus ``negative_weight * BCE(h, 0)`` over the background;
            "l1", "smooth_l1", "l2": ``|d|``, smooth L1 of d with transition at ``beta``, or
            ``d^2``, for ``d = sigmoid(h) - y``, over the foreground;
            "gfocal": ``|d|^gamma BCE(h, y)`` over the foreground (quality focal loss; Li et al.,
            "Generalized Focal Loss", Eq. 2).
        negative_weight: used by "ce_w".
        gamma: used by "gfocal"; at least 1 (below, the gradient at d = 0 is infinite).
        beta: used by "smooth_l1".
    """

    kind: Annotated[
        str,
        Option(
            "ce, ce_w (also trains background towards 0), l1, smooth_l1, l2 or gfocal",
            key="LOSS",
            source="RetinaNet-Conf, Table 2",
        ),
    ] = "ce"
    negative_weight: Annotated[
        float, Option("weight of the background in ce_w", only={"kind": ("ce_w",)})
    ] = 1e-4
    gamma: Annotated[float, Option("exponent of gfocal", only={"kind": ("gfocal",)})] = 2.0
    beta: Annotated[
        float, Option("where smooth_l1 becomes linear", only={"kind": ("smooth_l1",)})
    ] = 0.11

    def __post_init__(self) -> None:
        if self.kind not in QUALITY_LOSSES:
            raise ValueError(
                f"QUALITY.LOSS must be one of {', '.join(QUALITY_LOSSES)}, got {self.kind!r}"
            )
        if self.kind == "ce_w" and not self.negative_weight > 0:
            raise ValueError(
                f"QUALITY.NEGATIVE_WEIGHT must be positive for ce_w, got {self.negative_weight}"
            )
        if self.kind == "gfocal" and not self.gamma >= 1:
            raise ValueError(f"QUALITY.GAMMA must be at least 1, got {self.gamma}")
        if self.kind == "smooth_l1" and not self.beta > 0:
            raise ValueError(f"QUALITY.BETA must be positive, got {self.beta}")

    def __call__(
        self, logits: Tensor, targets: Tensor, foreground: Tensor, background: Tensor
    ) -> Tensor:
        """
        Args:
            logits: (...) h.
            targets: (...) y; only read at ``foreground``. May carry a gradient.
            foreground, background: (...) bool.

        Returns:
            Scalar float32 sum; gradients are zero outside the two masks, whatever the values there.
        """
        zero = logits.new_zeros((), dtype=torch.float32)
        logits = logits.float()
        # Replaced before the arithmetic: 0 times the gradient of a NaN is NaN.
        h = torch.where(foreground, logits, zero)
        y = torch.where(foreground, targets.float(), zero)
        total = torch.where(foreground, self._per_anchor(h, y), zero).sum()
        if self.kind == "ce_w":
            negative = torch.where(background, logits, zero)
            negative = torch.where(background, F.softplus(negative), zero).sum()
            total = total + self.negative_weight * negative
        return total

    def _per_anchor(self, logits: Tensor, targets: Tensor) -> Tensor:
        distance = (torch.sigmoid(logits) - targets).abs()
        if self.kind == "l1":
            return distance
        if self.kind == "l2":
            return distance**2
        if self.kind == "smooth_l1":
            near = distance < self.beta
            return torch.where(near, 0.5 * distance**2 / self.beta, distance - 0.5 * self.beta)
        if self.kind == "gfocal":
            return distance**self.gamma * _cross_entropy(logits, targets)
        return _cross_entropy(logits, targets)
