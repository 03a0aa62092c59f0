"""The contract of score branches: extra probabilities per anchor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resobj_d2.structures import Targets, TowerFeatures

__all__ = ["ScoreBranch"]


class ScoreBranch(nn.Module):
    """The contract of a score branch.

    Class attributes:
        name: names the factor in ``Candidates.factors`` and in ``FUSION``.
        owns_background: the branch learns foreground against background, so the class loss
            covers foreground anchors only.
        last_stage_only: reads the last stage's tower and learns from that stage alone; otherwise
            it reads the first stage's and learns from every stage, weighted as that stage is.
        needs_boxes: ``loss`` gets the stage's decoded boxes.
        fusion_share: default exponent of its factor, which leaves one minus that to every other
            factor; None for the exponent 1 that changes no other.

    ``num_steps`` counts the refinements of the probability (0 for a plain one).
    """

    name: str
    owns_background: bool
    last_stage_only = False
    needs_boxes = False
    fusion_share: float | None = None
    num_steps = 0

    def predict(self, features: TowerFeatures, *, every_step: bool = True) -> object:
        """Whatever ``loss`` and ``score_logits`` need.

        Args:
            every_step: False where only the last refinement is wanted (at inference).
        """
        raise TypeError(f"{type(self).__name__} must define predict")

    def loss(
        self,
        prediction: object,
        *,
        targets: Targets,
        boxes: Tensor | None,
        anchors_per_level: list[int],
        normalizer: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses (names start with ``loss_``) and detached statistics to log.

        Args:
            targets: of the stage it learns from.
            boxes: (N, R, 4) what that stage predicts, with gradient, if ``needs_boxes``.
            anchors_per_level: anchors per level.
            normalizer: what divides its sums.
        """
        raise TypeError(f"{type(self).__name__} must define loss")

    def score_logits(self, prediction: object, step: int | None = None) -> Tensor:
        """(N, R) float32 logits of the probability.

        Args:
            step: asks for an earlier refinement, None for the last.
        """
        raise TypeError(f"{type(self).__name__} must define score_logits")

    def probability(self, prediction: object, step: int | None = None) -> Tensor:
        """(N, R) in [0, 1]."""
        return torch.sigmoid(self.score_logits(prediction, step))
