"""Score branches: extra probabilities per anchor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resobj_d2.losses import ResidualObjectnessLoss
from resobj_d2.structures import Targets, TowerFeatures

from .build import BRANCH_REGISTRY
from .predictors import SharedConv, init_conv, prior_bias

__all__ = ["ObjectnessBranch", "ObjectnessPrediction", "ScoreBranch"]


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

    def predict(self, features: TowerFeatures) -> object:
        """Whatever ``loss`` and ``score_logits`` need."""
        raise TypeError(f"{type(self).__name__} must define predict")

    def loss(
        self,
        prediction: object,
        *,
        targets: Targets,
        boxes: Tensor | None,
        level_sizes: list[int],
        normalizer: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses (names start with ``loss_``) and detached statistics to log.

        Args:
            targets: of the stage it learns from.
            boxes: (N, R, 4) what that stage predicts, with gradient, if ``needs_boxes``.
            level_sizes: anchors per level.
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


@dataclass
class ObjectnessPrediction:
    """``logits`` (N, R): o_0; ``residuals`` (T, N, R): r_1 .. r_T."""

    logits: Tensor
    residuals: Tensor


class _ObjectnessSubnet(nn.Module):
    """A hidden 3x3 convolution with ReLU and a 3x3 predictor (Residual Objectness, Fig. 1e)."""

    def __init__(self, *, channels: int, num_anchors: int, bias: float) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        init_conv(self.hidden)
        self.predictor = SharedConv(
            in_channels=channels, num_anchors=num_anchors, channels=1, bias_value=bias
        )

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Hidden features per level, and logits (N, R)."""
        hidden = [self.hidden(x) for x in features]
        return hidden, self.predictor(hidden).squeeze(-1)


@BRANCH_REGISTRY.register()
class ObjectnessBranch(ScoreBranch):
    """Objectness and its T residual refinements, on the class tower.

    Chen et al., "Residual Objectness for Imbalance Reduction", Fig. 1 and Algorithm 1.

    Args:
        in_channels: channels of the class tower.
        num_anchors: A.
        steps: T >= 0.
        source: what the residual subnets read: "objectness", "class" or "chain".
        loss: the loss; its ``detach`` also decides where the subnets' input is cut.
        bias: initial bias of the objectness predictor.
        residual_bias: initial bias of the residual predictors.
    """

    name = "objectness"
    owns_background = True

    def __init__(
        self,
        *,
        in_channels: int,
        num_anchors: int,
        steps: int,
        source: str = "objectness",
        loss: ResidualObjectnessLoss,
        bias: float,
        residual_bias: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= steps <= 8:
            raise ValueError(f"OBJECTNESS.STEPS must be 0..8, got {steps}")
        if source not in ("objectness", "class", "chain"):
            raise ValueError(
                f"OBJECTNESS.SOURCE must be 'objectness', 'class' or 'chain', got {source!r}"
            )
        self.num_steps = steps
        self.source = source
        self.residual_loss = loss
        self.base = _ObjectnessSubnet(channels=in_channels, num_anchors=num_anchors, bias=bias)
        self.residuals = nn.ModuleList(
            _ObjectnessSubnet(channels=in_channels, num_anchors=num_anchors, bias=residual_bias)
            for _ in range(steps)
        )

    @classmethod
    def from_config(
        cls, node, *, num_classes: int, in_channels: int, num_anchors: int
    ) -> ObjectnessBranch | None:
        node = node.OBJECTNESS
        if not node.ENABLED:
            return None
        return cls(
            in_channels=in_channels,
            num_anchors=num_anchors,
            steps=node.STEPS,
            source=node.SOURCE,
            loss=ResidualObjectnessLoss(
                weight=node.WEIGHT,
                residual_weight=node.RESIDUAL_WEIGHT,
                detach=node.DETACH,
                min_scope=node.MIN_SCOPE,
                unselected=node.UNSELECTED,
            ),
            bias=prior_bias(node.PRIOR_PROB, num_classes),
            residual_bias=node.RESIDUAL_BIAS,
        )

    def predict(self, features: TowerFeatures) -> ObjectnessPrediction:
        hidden, logits = self.base(features.cls)
        detach = self.residual_loss.detach
        # The base subnet must not learn from residual losses through the hidden feature either.
        source = [x.detach() for x in hidden] if detach != "none" else hidden
        residuals = []
        for subnet in self.residuals:
            subnet_hidden, residual = subnet(features.cls if self.source == "class" else source)
            if self.source == "chain":
                cut = detach == "all"
                source = [x.detach() for x in subnet_hidden] if cut else subnet_hidden
            residuals.append(residual)
        stacked = torch.stack(residuals) if residuals else logits.new_zeros((0, *logits.shape))
        return ObjectnessPrediction(logits=logits, residuals=stacked)

    def loss(
        self,
        prediction: ObjectnessPrediction,
        *,
        targets: Targets,
        boxes: Tensor | None,
        level_sizes: list[int],
        normalizer: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return self.residual_loss(
            prediction.logits,
            prediction.residuals,
            targets.binary_labels,
            level_sizes=level_sizes,
            normalizer=normalizer,
        )

    def score_logits(self, prediction: ObjectnessPrediction, step: int | None = None) -> Tensor:
        """o_step. Every residual applies to every anchor: no labels, no selection."""
        steps = self.num_steps if step is None else step
        return prediction.logits.float() + prediction.residuals[:steps].float().sum(dim=0)
