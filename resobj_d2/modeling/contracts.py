"""Base classes of the network slots: towers, predictors and score branches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resobj_d2.structures import LevelMaps, Targets, TowerFeatures

__all__ = ["Predictor", "ScoreBranch", "Tower"]


class Tower(nn.Module):
    """The layers between the feature pyramid and the predictors.

    Besides its options its constructor takes ``in_channels``, the channels of each level, and
    ``tasks``; a stage's own tower has only the tasks it needs.

    Attributes:
        tasks: some of "cls" and "box".
        out_channels: channels of each level.
    """

    tasks: list[str]
    out_channels: list[int]

    def forward(self, features: list[Tensor]) -> TowerFeatures:
        """Maps one (N, C_l, H_l, W_l) per level to the maps of every task."""
        maps = {task: self.run(task, features) for task in self.tasks}
        return TowerFeatures(**maps, pyramid=features)

    def run(self, task: str, features: list[Tensor]) -> list[Tensor]:
        """One task's maps, from ``features`` that may belong to that task alone."""
        raise TypeError(f"{type(self).__name__} must define run")

    def hidden(
        self, *, in_channels: Sequence[int], channels: Sequence[int], num_convs: int
    ) -> nn.Module:
        """Hidden layers of score branches in the tower's style.

        Args:
            in_channels, channels: per level.
            num_convs: layers per level; 0 for none (identity).

        Returns:
            A module that maps one map per level to one per level; its ``out_channels`` lists their
            channels.
        """
        raise TypeError(f"{type(self).__name__} must define hidden")


class Predictor(nn.Module):
    """The last layer: feature maps to ``channels`` numbers per anchor.

    Besides its options its constructor takes ``in_channels`` and ``num_anchors``, A_l, of each
    level, ``channels`` and ``bias_value``.
    """

    channels: int

    def maps(self, features: list[Tensor]) -> LevelMaps:
        """Maps (N, C_l, H_l, W_l) per level to (N, A_l * channels, H_l, W_l) per level."""
        raise TypeError(f"{type(self).__name__} must define maps")

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (N, C_l, H_l, W_l) per level to (N, R, channels), flattened over all anchors."""
        return self.maps(features).flatten()

    @classmethod
    def sum_of(cls, predictors: Sequence[Predictor], features: Sequence[list[Tensor]]) -> LevelMaps:
        """The summed outputs of predictors of this class, each on its own features."""
        outputs = [predictor.maps(x) for predictor, x in zip(predictors, features, strict=True)]
        levels = [sum(maps) for maps in zip(*(x.levels for x in outputs), strict=True)]
        return LevelMaps(levels, outputs[0].channels)


class ScoreBranch(nn.Module):
    """Base class of score branches, which predict an extra probability per anchor.

    Besides its options, which live in the configuration node ``node_name``, its constructor takes
    ``num_classes`` and ``parts`` (:class:`.heads.HeadParts`).

    Class attributes:
        node_name: its node below the stream's, e.g. "OBJECTNESS"; that node's ENABLED switches the
            branch on.
        name: name of the factor in ``Candidates.factors`` and in ``FUSION``.
        owns_background: the branch learns foreground against background, so the class loss
            covers foreground anchors only.
        last_stage_only: it reads the last stage's tower and trains on that stage only; otherwise it
            reads the first stage's and trains on every stage, with that stage's weight.
        needs_boxes: ``loss`` gets the stage's decoded boxes.
        single_stage: why it is refused with ``STAGES``; empty if it is not.
        fusion_share: default exponent of its factor; all other factors then get one minus it. None
            for exponent 1 without an effect on the others.

    ``num_steps`` counts the refinements of the probability (0 if it is never refined).
    """

    node_name: str
    name: str
    owns_background: bool
    last_stage_only = False
    needs_boxes = False
    single_stage = ""
    fusion_share: float | None = None
    num_steps = 0

    def predict(self, features: TowerFeatures, *, every_step: bool = True) -> object:
        """Whatever ``loss`` and ``score_logits`` need.

        Args:
            every_step: False if only the last refinement is needed (at inference).
        """
        raise TypeError(f"{type(self).__name__} must define predict")

    def loss(
        self,
        prediction: object,
        *,
        targets: Targets,
        anchors: Tensor,
        boxes: Tensor | None,
        anchors_per_level: list[int],
        normalizer: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses (names start with ``loss_``) and detached statistics to log.

        Args:
            targets: targets of the stage it trains on.
            anchors: (R, 4) or (N, R, 4) of that stage.
            boxes: (N, R, 4) that stage's predicted boxes, with gradient, if ``needs_boxes``.
            anchors_per_level: number of anchors of each level.
            normalizer: the divisor of its sums.
        """
        raise TypeError(f"{type(self).__name__} must define loss")

    def score_logits(self, prediction: object, step: int | None = None) -> Tensor:
        """(N, R) float32 logits of the probability.

        Args:
            step: an earlier refinement; None for the last.
        """
        raise TypeError(f"{type(self).__name__} must define score_logits")

    def probability(self, prediction: object, step: int | None = None) -> Tensor:
        """(N, R) probabilities in [0, 1]."""
        return torch.sigmoid(self.score_logits(prediction, step))

    def probability_per_step(self, prediction: object) -> list[Tensor]:
        """The probabilities after 0, 1, ... refinements, each (N, R).

        Empty if the probability is never refined or ``prediction`` has only the last.
        """
        return []
