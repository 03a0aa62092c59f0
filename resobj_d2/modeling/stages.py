"""Stages: sets of anchors with their own supervision."""

from __future__ import annotations

from torch import Tensor, nn

from resobj_d2.structures import StagePrediction, TowerFeatures

__all__ = ["Stage"]


class Stage(nn.Module):
    """The predictors of one set of anchors, the rule that labels these, and their normaliser.

    Args:
        cls: maps the class tower's levels to (N, R, K) logits.
        box: maps the box tower's levels to (N, R, 4) deltas.
        assigner: see ``ASSIGNER_REGISTRY``.
        normalizer: see ``NORMALIZER_REGISTRY``.
    """

    def __init__(self, *, cls: nn.Module, box: nn.Module, assigner, normalizer: nn.Module) -> None:
        super().__init__()
        self.cls = cls
        self.box = box
        self.assigner = assigner
        self.normalizer = normalizer

    def forward(self, features: TowerFeatures, anchors: Tensor) -> StagePrediction:
        """anchors: (R, 4) or (N, R, 4), without gradient."""
        return StagePrediction(
            anchors=anchors, cls_logits=self.cls(features.cls), deltas=self.box(features.box)
        )
