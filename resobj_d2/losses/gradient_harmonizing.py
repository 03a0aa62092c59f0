"""Gradient harmonising losses (Li, Liu, Wang, "Gradient Harmonized Single-stage Detector").

Each element is weighted by the inverse of the number of elements with a similar gradient norm,
counted in bins, which also normalises the loss. The counts are running means over calls, saved in
checkpoints. As in the authors' code they start at 0 without bias correction, so the first calls
weigh more, and they are not shared between processes.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from resobj_d2.options import Option
from resobj_d2.precision import Float32Buffers

from .base import BoxLoss, SigmoidScores
from .build import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY
from .parts import over_parts, per_part

__all__ = ["GHMCLoss", "GHMRLoss"]


class _GradientDensity(Float32Buffers):
    """Running counts of gradient norms in bins of equal width over [0, 1].

    Args:
        bins: M.
        momentum: of the running counts; 0 uses those of the current batch only.
    """

    counts_batch = True

    def __init__(self, *, bins: int, momentum: float) -> None:
        super().__init__()
        if bins < 1 or not 0 <= momentum < 1:
            raise ValueError(
                f"GHM_BINS must be at least 1 and GHM_MOMENTUM in [0, 1), got {bins} and {momentum}"
            )
        self.bins = bins
        self.momentum = momentum
        self.counts: Tensor
        self.register_buffer("counts", torch.zeros(bins))

    @torch.no_grad()
    def weights(self, norms: Tensor, counted: Tensor) -> Tensor:
        """``1 / (count of its bin * number of non-empty bins)``; 0 for elements not counted.

        With these weights the sum over the elements is the paper's Eq. 8,
        ``1/N sum(N / GD(g) * loss)``, with gradient density GD = ``count * M`` and M the number of
        non-empty bins.

        Args:
            norms: gradient norms in [0, 1].
            counted: bool, the same shape.
        """
        index = (norms * self.bins).long().clamp(0, self.bins - 1)
        # Integers: float32 stops counting at 2^24, and a batch has more elements than that.
        batch_counts = torch.zeros(self.bins, dtype=torch.int32, device=norms.device)
        batch_counts = batch_counts.scatter_add(0, index.flatten(), counted.flatten().int())
        batch_counts = over_parts(batch_counts)
        used = batch_counts > 0
        mixed = self.momentum * self.counts + (1 - self.momentum) * batch_counts
        # An empty bin keeps its count.
        self.counts = torch.where(used, mixed, self.counts)
        weight = torch.where(used, 1 / per_part(self.counts * used.sum()), 0.0)
        return torch.where(counted, weight[index], 0.0)


@CLS_LOSS_REGISTRY.register()
class GHMCLoss(_GradientDensity, SigmoidScores):
    """GHM-C: cross entropy over K sigmoids, harmonised by ``|sigmoid - target|`` (Eq. 3, 9)."""

    self_normalized = True
    ranks_anchors = False

    def __init__(
        self,
        *,
        bins: Annotated[int, Option("number of bins for the gradient norm", key="GHM_BINS")] = 30,
        momentum: Annotated[
            float, Option("momentum of the bins' counts", key="GHM_MOMENTUM")
        ] = 0.75,
    ) -> None:
        super().__init__(bins=bins, momentum=momentum)

    def forward(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Harmonised mean over the anchors of ``mask`` and their classes; see the base class."""
        counted = (mask & (labels >= 0))[..., None].expand_as(logits)
        classes = torch.arange(logits.shape[-1], device=logits.device)
        # Values outside the mask may be anything: replace them rather than multiply by zero.
        logits = torch.where(counted, logits.float(), 0.0)
        wrong = torch.where(labels[..., None] == classes, -logits, logits)
        weights = self.weights(torch.sigmoid(wrong), counted)
        return (weights * F.softplus(wrong)).sum()


@BOX_LOSS_REGISTRY.register()
class GHMRLoss(_GradientDensity, BoxLoss):
    """GHM-R: ``sqrt(d^2 + mu^2) - mu`` on encoded deltas, harmonised by its slope (Eq. 10-13).

    Args:
        mu: scale below which the loss is close to a parabola.
    """

    self_normalized = True

    def __init__(
        self,
        *,
        mu: Annotated[
            float,
            Option("scale below which the loss is close to a parabola", key="GHM_MU"),
        ] = 0.02,
        bins: Annotated[int, Option("number of bins for the gradient norm", key="GHM_BINS")] = 10,
        momentum: Annotated[
            float, Option("momentum of the bins' counts", key="GHM_MOMENTUM")
        ] = 0.7,
    ) -> None:
        super().__init__(bins=bins, momentum=momentum)
        if mu <= 0:
            raise ValueError(f"BOX_LOSS.GHM_MU must be positive, got {mu}")
        self.mu = mu

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Harmonised mean over the four deltas of the rows in ``mask``; see the base class."""
        counted = mask[..., None].expand_as(pred)
        distance = torch.where(counted, pred.float(), 0.0) - torch.where(
            counted, target.float(), 0.0
        )
        root = torch.sqrt(distance**2 + self.mu**2)
        weights = self.weights(distance.abs() / root, counted)
        return (weights * (root - self.mu)).sum()
