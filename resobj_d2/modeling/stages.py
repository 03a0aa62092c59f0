"""Stages: sets of anchors with their own supervision."""

from __future__ import annotations

from torch import Tensor, nn

from resobj_d2.structures import StagePrediction, TowerFeatures

__all__ = ["Stage"]


class Stage(nn.Module):
    """The predictors of one set of anchors, the rule that labels these, and their normaliser.

    Args:
        cls: its ``maps`` makes K logits per anchor of the class tower's levels.
        box: its ``maps`` makes 4 deltas per anchor of the box tower's levels.
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
            anchors=anchors, cls=self.cls.maps(features.cls), box=self.box.maps(features.box)
        )
