"""A score branch for objectness and its residual refinements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from resobj_d2.losses import ResidualObjectnessLoss
from resobj_d2.modeling.build import BRANCH_REGISTRY
from resobj_d2.modeling.contracts import ScoreBranch
from resobj_d2.modeling.heads.predictors import HeadParts, prior_bias
from resobj_d2.options import Option, Part
from resobj_d2.structures import Targets, TowerFeatures

__all__ = ["ObjectnessBranch", "ObjectnessPrediction"]


@dataclass
class ObjectnessPrediction:
    """``logits`` (N, R): o_0; ``residuals`` (T, N, R): r_1 .. r_T.

    If only the last step was requested, ``logits`` is o_T and there are no residuals.
    """

    logits: Tensor
    residuals: Tensor


class _ObjectnessSubnet(nn.Module):
    """Hidden convolutions and a predictor (Residual Objectness, Fig. 1e).

    Args:
        parts: what its layers are built from.
        in_channels: number of input channels per level.
        hidden_channels: width of the hidden convolutions; None for that of the input.
        num_convs: number of hidden convolutions.
    """

    def __init__(
        self,
        *,
        parts: HeadParts,
        in_channels: Sequence[int],
        hidden_channels: int | None,
        num_convs: int,
        bias: float,
    ) -> None:
        super().__init__()
        self.hidden = parts.hidden(
            in_channels=in_channels, channels=hidden_channels, num_convs=num_convs
        )
        self.out_channels = self.hidden.out_channels
        self.predictor = parts.predictor(in_channels=self.out_channels, channels=1, bias=bias)


@BRANCH_REGISTRY.register()
class ObjectnessBranch(ScoreBranch):
    """Objectness and its T residual refinements, on the class tower.

    Chen et al., "Residual Objectness for Imbalance Reduction", Fig. 1 and Algorithm 1.

    Args:
        parts: what its layers are built from.
        steps: T >= 0.
        source: what the residual subnets read: "objectness", "class" or "chain".
        loss: the loss; its ``detach`` also decides where the subnets' input is detached.
        num_classes: K, for ``prior_prob``.
        prior_prob: see :func:`.heads.predictors.prior_bias`.
        residual_bias: initial bias of the residual predictors.
        hidden_channels: width of the subnets' hidden convolutions; None for that of their input, as
            in the paper.
        num_convs: number of hidden convolutions per subnet, 1 in the paper. With 0 the residual
            predictors read the same features as the base predictor.
        base_convs: the same for the base subnet; None for ``num_convs``.
    """

    node_name = "OBJECTNESS"
    name = "objectness"
    owns_background = True

    def __init__(
        self,
        *,
        parts: HeadParts,
        num_classes: int,
        steps: Annotated[
            int,
            Option("number of residual subnets; 0 is RetinaNet-Obj", source="ResObj, Algorithm 1"),
        ] = 2,
        source: Annotated[
            str,
            Option(
                "what the residual subnets read: objectness (the objectness subnet's hidden "
                "feature), class (the class tower), chain (the previous subnet's hidden feature)",
                source="ResObj, Table 2b",
            ),
        ] = "objectness",
        loss: Annotated[ResidualObjectnessLoss, Part()],
        prior_prob: Annotated[
            float, Option("initial objectness score; 0 for 1 / NUM_CLASSES")
        ] = 0.01,
        residual_bias: Annotated[float, Option("initial bias of the residual predictors")] = 0.0,
        hidden_channels: Annotated[
            int | None,
            Option("width of the subnets' hidden convolutions; 0 for the tower's", none=0),
        ] = None,
        num_convs: Annotated[
            int, Option("number of hidden convolutions per subnet", source="ResObj, Figure 1e")
        ] = 1,
        base_convs: Annotated[
            int | None,
            Option("the same for the base subnet; -1 for NUM_CONVS", none=-1),
        ] = None,
    ) -> None:
        super().__init__()
        base_convs = num_convs if base_convs is None else base_convs
        if hidden_channels is not None and hidden_channels < 1 or min(num_convs, base_convs) < 0:
            raise ValueError(
                "OBJECTNESS.HIDDEN_CHANNELS, NUM_CONVS and BASE_CONVS must not be negative, "
                f"got {hidden_channels}, {num_convs} and {base_convs}"
            )
        if not 0 <= steps <= 8:
            raise ValueError(f"OBJECTNESS.STEPS must be 0..8, got {steps}")
        if source not in ("objectness", "class", "chain"):
            raise ValueError(
                f"OBJECTNESS.SOURCE must be 'objectness', 'class' or 'chain', got {source!r}"
            )
        self.num_steps = steps
        self.source = source
        self.residual_loss = loss
        sizes = {"parts": parts, "hidden_channels": hidden_channels}
        self.base = _ObjectnessSubnet(
            in_channels=parts.in_channels,
            num_convs=base_convs,
            bias=prior_bias(prior_prob, num_classes),
            **sizes,
        )
        self.residuals = nn.ModuleList()
        read = parts.in_channels if source == "class" else self.base.out_channels
        for _ in range(steps):
            subnet = _ObjectnessSubnet(
                in_channels=read, num_convs=num_convs, bias=residual_bias, **sizes
            )
            self.residuals.append(subnet)
            read = subnet.out_channels if source == "chain" else read

    def predict(self, features: TowerFeatures, *, every_step: bool = True) -> ObjectnessPrediction:
        hidden = [self.base.hidden(features.cls)]
        detach = self.residual_loss.detach
        # Residual losses must not train the base subnet through the hidden feature either.
        source = [x.detach() for x in hidden[0]] if detach != "none" else hidden[0]
        for subnet in self.residuals:
            read = features.cls if self.source == "class" else source
            hidden.append(subnet.hidden(read))
            if self.source == "chain":
                source = [x.detach() for x in hidden[-1]] if detach == "all" else hidden[-1]
        predictors = [subnet.predictor for subnet in (self.base, *self.residuals)]
        if every_step:
            logits, *residuals = (
                predictor(maps).squeeze(-1)
                for predictor, maps in zip(predictors, hidden, strict=True)
            )
        else:
            maps = type(predictors[0]).sum_of(predictors, hidden)
            logits, residuals = maps.flatten().squeeze(-1), []
        stacked = torch.stack(residuals) if residuals else logits.new_zeros((0, *logits.shape))
        return ObjectnessPrediction(logits=logits, residuals=stacked)

    def loss(
        self,
        prediction: ObjectnessPrediction,
        *,
        targets: Targets,
        anchors: Tensor,
        boxes: Tensor | None,
        anchors_per_level: list[int],
        normalizer: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return self.residual_loss(
            prediction.logits,
            prediction.residuals,
            targets.binary_labels,
            anchors_per_level=anchors_per_level,
            normalizer=normalizer,
        )

    def score_logits(self, prediction: ObjectnessPrediction, step: int | None = None) -> Tensor:
        """(N, R) logits o_step. Every residual is added to every anchor, without selection."""
        steps = self.num_steps if step is None else step
        return prediction.logits.float() + prediction.residuals[:steps].float().sum(dim=0)

    def probability_per_step(self, prediction: ObjectnessPrediction) -> list[Tensor]:
        if not len(prediction.residuals):
            return []
        return [self.probability(prediction, step) for step in range(self.num_steps + 1)]
