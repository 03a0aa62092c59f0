"""The contracts of the network slots: towers, predictors and score branches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resobj_d2.structures import LevelMaps, Targets, TowerFeatures

__all__ = ["Predictor", "ScoreBranch", "Tower"]


class Tower(nn.Module):
    """What stands between the feature pyramid and the predictors.

    Its constructor takes, beside its options, ``in_channels``, the channels of each level, and
    ``tasks``: stages with a tower of their own have only those that they need.

    Attributes:
        tasks: some of "cls" and "box".
        out_channels: channels of each level.
    """

    tasks: list[str]
    out_channels: list[int]

    def forward(self, features: list[Tensor]) -> TowerFeatures:
        """One (N, C_l, H_l, W_l) per level to the maps of every task."""
        maps = {task: self.run(task, features) for task in self.tasks}
        return TowerFeatures(**maps, pyramid=features)

    def run(self, task: str, features: list[Tensor]) -> list[Tensor]:
        """One task's maps, which may be made of an input of its own."""
        raise TypeError(f"{type(self).__name__} must define run")

    def hidden(
        self, *, in_channels: Sequence[int], channels: Sequence[int], num_convs: int
    ) -> nn.Module:
        """Hidden layers of score branches in the tower's style.

        Args:
            in_channels, channels: per level.
            num_convs: layers per level; 0 passes the maps on.

        Returns:
            A module from the maps of all levels to as many; its ``out_channels`` lists their
            channels.
        """
        raise TypeError(f"{type(self).__name__} must define hidden")


class Predictor(nn.Module):
    """The last layer: maps of features to ``channels`` numbers per anchor.

    Its constructor takes, beside its options, ``in_channels`` and ``num_anchors``, A_l, of each
    level, ``channels`` and ``bias_value``.
    """

    channels: int

    def maps(self, features: list[Tensor]) -> LevelMaps:
        """List of (N, C_l, H_l, W_l) to (N, A_l * channels, H_l, W_l) of each."""
        raise TypeError(f"{type(self).__name__} must define maps")

    def forward(self, features: list[Tensor]) -> Tensor:
        """List of (N, C_l, H_l, W_l) to (N, R, channels), flattened over levels and anchors."""
        return self.maps(features).flatten()

    @classmethod
    def sum_of(cls, predictors: Sequence[Predictor], features: Sequence[list[Tensor]]) -> LevelMaps:
        """The sum of what each predictor makes of its own features; all of this class."""
        outputs = [predictor.maps(x) for predictor, x in zip(predictors, features, strict=True)]
        levels = [sum(maps) for maps in zip(*(x.levels for x in outputs), strict=True)]
        return LevelMaps(levels, outputs[0].channels)


class ScoreBranch(nn.Module):
    """The contract of a score branch.

    Its constructor takes ``num_classes`` and ``parts`` (:class:`.heads.HeadParts`) beside its
    options, whose configuration node is named by ``node_name``.

    Class attributes:
        node_name: the node below the stream's, e.g. "OBJECTNESS"; its key ENABLED says whether
            there is such a branch.
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

    node_name: str
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

    def probability_per_step(self, prediction: object) -> list[Tensor]:
        """The probabilities after 0, 1, ... refinements, each (N, R).

        Empty where the probability is never refined or ``prediction`` has the last alone.
        """
        return []
