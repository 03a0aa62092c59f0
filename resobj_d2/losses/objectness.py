"""Residual Objectness as named losses, shared by dense heads and region proposal networks.

Where the paper (Chen et al., "Residual Objectness for Imbalance Reduction") leaves a choice, this
is how we read it; each choice is an argument:

- The residual is added in logit space: ``o_t = o_{t-1} + r_t`` (Algorithm 1, lines 6-7).
- The minimum positive score of step t is taken over ``o_{t-1}`` of the foreground anchors, by
  default of one image (``min_scope``): inference ranks per image, and the result then does not
  depend on how a batch is split over GPUs. Ignored anchors are left out.
- Without a foreground anchor in the scope nothing is selected and the step's loss is 0, still
  attached to the graph.
- ``o_t`` is computed for every anchor and only the loss is restricted to the selected ones
  (``unselected="update"``), so that training and inference agree.
- By default no gradient flows from step t to earlier steps (``detach="all"``; Table 2a).
- Every sum is divided by the same normaliser, never by the number of selected anchors, which
  would increase the loss's weight as that number shrinks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from resobj_d2 import ops
from resobj_d2.ops.residual_objectness_bce import DETACH, MIN_SCOPES, UNSELECTED
from resobj_d2.options import Option

__all__ = ["ResidualObjectnessLoss", "objectness_difficulty"]


def objectness_difficulty(logits: Tensor, foreground: Tensor) -> Tensor:
    """(N, R) BCE of each anchor, for ranking by samplers.

    NaN counts as hardest: a sampler that dropped it would hide that training has diverged.

    Args:
        logits: (N, R) objectness.
        foreground: (N, R) bool; all others count as background.
    """
    loss = F.softplus(torch.where(foreground, -logits, logits))
    return torch.where(loss.isnan(), math.inf, loss)


@dataclass(frozen=True, kw_only=True)
class ResidualObjectnessLoss:
    """BCE on the objectness and on each refined objectness (Algorithm 1), as named losses.

    Attributes:
        weight: factor of the base objectness loss.
        residual_weight: factor of each residual step's loss.
        detach: "all", "objectness" or "none"; see :func:`resobj_d2.ops.residual_objectness_bce`.
        min_scope: "image", "batch", "level" or "none".
        unselected: "update" or "keep".
    """

    weight: Annotated[float, Option("factor of the base objectness loss")] = 1.0
    residual_weight: Annotated[float, Option("factor of each residual step's loss")] = 1.0
    detach: Annotated[
        str,
        Option(
            "all: a residual loss trains only its own subnet (and, with SOURCE class, the class "
            "tower); objectness: earlier residual subnets too; none: everything",
            source="ResObj, Table 2a",
        ),
    ] = "all"
    min_scope: Annotated[
        str,
        Option(
            "scope of the minimum positive score: image, batch, level, or none to train "
            "every labelled anchor at every step",
            source="ResObj, Algorithm 1",
        ),
    ] = "image"
    unselected: Annotated[
        str,
        Option(
            "anchors below the minimum in training: update adds the residual, as at "
            "inference; keep leaves the objectness unchanged",
            source="ResObj, Algorithm 1",
        ),
    ] = "update"

    def __post_init__(self) -> None:
        for key, value, choices in (
            ("DETACH", self.detach, DETACH),
            ("MIN_SCOPE", self.min_scope, MIN_SCOPES),
            ("UNSELECTED", self.unselected, UNSELECTED),
        ):
            if value not in choices:
                raise ValueError(f"OBJECTNESS.{key} must be one of {choices}, got {value!r}")

    def __call__(
        self,
        logits: Tensor,
        residuals: Tensor,
        labels: Tensor,
        *,
        anchors_per_level: list[int],
        normalizer: Tensor | float,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """
        Args:
            logits: (N, R) base objectness ``o_0``.
            residuals: (T, N, R).
            labels: (N, R) int8, 1 foreground, 0 background, -1 ignored.
            anchors_per_level: number of anchors of each level; sums to R.
            normalizer: a number, or a tensor of one: the divisor of every sum.

        Returns:
            ``{"loss_objectness": ..., "loss_residual_1": ...}``, and scalar statistics of each
            step (the paper's Figures 2 and 4): ``objectness/step{t}/positive`` and
            ``.../negative``, the mean objectness of those anchors (NaN if the batch has none);
            ``.../selected``, the number of anchors in the loss.
        """
        divisor = torch.as_tensor(normalizer, device=logits.device).reshape(())
        later = [self.residual_weight / divisor] * len(residuals)
        factors = torch.stack([self.weight / divisor, *later])
        with ops.expected_gradient(factors):
            result = ops.residual_objectness_bce(
                logits,
                residuals,
                labels,
                detach=self.detach,
                min_scope=self.min_scope,
                unselected=self.unselected,
                anchors_per_level=anchors_per_level if self.min_scope == "level" else [],
            )
        names = ["loss_objectness", *(f"loss_residual_{t + 1}" for t in range(len(residuals)))]
        losses = dict(zip(names, (result.losses * factors).unbind(), strict=True))
        statistics = {}
        means = result.score_sums / result.num_background_foreground
        for t, (count, (negative, positive)) in enumerate(zip(result.counts, means, strict=True)):
            statistics[f"objectness/step{t}/positive"] = positive
            statistics[f"objectness/step{t}/negative"] = negative
            statistics[f"objectness/step{t}/selected"] = count
        return losses, statistics
