"""Distances to the sides of a box as distributions."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from resobj_d2.options import Option

from .base import Coder
from .build import CODER_REGISTRY

__all__ = ["DistributionCoder"]


@CODER_REGISTRY.register()
class DistributionCoder(Coder):
    """Each distance to a side is the mean of a softmax over 0, 1, ... n strides.

    Li et al. 2020, "Generalized Focal Loss", section 3.2, Eq. 5 and 6. Distances are from the
    anchor's centre, so the size of an anchor does not matter, and a box cannot be refined.

    Args:
        largest: n, the largest distance in strides.
        weight: factor of the distribution focal loss, :meth:`loss`; 0 for none.
    """

    delta_space = "distributions"
    refines = False

    def __init__(
        self,
        *,
        largest: Annotated[
            int,
            Option(
                "largest distance to a side, in strides",
                key="LARGEST",
                source="Generalized Focal Loss, section 3.2",
            ),
        ] = 16,
        weight: Annotated[
            float,
            Option(
                "factor of the distribution focal loss, a mean over four sides; 0 for none",
                key="DFL_WEIGHT",
                source="Generalized Focal Loss, Eq. 8",
            ),
        ] = 0.25,
    ) -> None:
        if largest < 1 or weight < 0:
            raise ValueError(
                "CODER.LARGEST must be at least 1 and DFL_WEIGHT at least 0, "
                f"got {largest} and {weight}"
            )
        self.largest = largest
        self.channels = 4 * (largest + 1)
        self.loss_weight = weight

    def encode(self, anchors: Tensor, boxes: Tensor, strides: Tensor) -> Tensor:
        """Distances (..., 4) in strides, between 0 and n."""
        centre = (anchors[..., :2] + anchors[..., 2:]) / 2
        sides = torch.cat((centre - boxes[..., :2], boxes[..., 2:] - centre), dim=-1)
        return (sides / strides).clamp(min=0, max=self.largest)

    def decode(self, anchors: Tensor, deltas: Tensor, strides: Tensor) -> Tensor:
        """Boxes (..., 4) in float32, from (..., 4 (n + 1)) logits."""
        centre = (anchors[..., :2] + anchors[..., 2:]) / 2
        probability = deltas.float().unflatten(-1, (4, -1)).softmax(dim=-1)
        places = torch.arange(self.largest + 1, device=deltas.device, dtype=torch.float32)
        sides = (probability * places).sum(dim=-1) * strides  # in float32 under autocast too
        return torch.cat((centre - sides[..., :2], centre + sides[..., 2:]), dim=-1)

    def loss(
        self, deltas: Tensor, target: Tensor, mask: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Distribution focal loss (Eq. 6): cross entropy of the two places next to the distance.

        The sum over boxes of the mean over their four sides.

        Args:
            deltas: (..., 4 (n + 1)) logits.
            target: (..., 4) from :meth:`encode`.
            mask: (...) bool, the rows that count.
            weights: (...) factor of each row; None for 1.
        """
        # Replaced before the arithmetic: 0 times the gradient of a NaN is NaN.
        logits = torch.where(mask[..., None], deltas.float(), 0.0).unflatten(-1, (4, -1))
        target = torch.where(mask[..., None], target, 0.0)
        left = target.floor().clamp(max=self.largest - 1).long()
        share = target - left  # of the right one
        log_p = F.log_softmax(logits, dim=-1)
        nearby = torch.cat((left[..., None], left[..., None] + 1), dim=-1)
        log_left, log_right = log_p.gather(-1, nearby).unbind(-1)
        loss = -((1 - share) * log_left + share * log_right).mean(dim=-1)
        loss = loss if weights is None else loss * weights
        return torch.where(mask, loss, 0.0).sum()
