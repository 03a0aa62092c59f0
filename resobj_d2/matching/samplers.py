"""Which of the labelled anchors are trained."""

from __future__ import annotations

from torch import Tensor

from resobj_d2.structures import Targets

from .build import SAMPLER_REGISTRY

__all__ = ["KeepAll"]


@SAMPLER_REGISTRY.register()
class KeepAll:
    """Every labelled anchor, as in RetinaNet and Residual Objectness ("sampling-free")."""

    @classmethod
    def from_config(cls, node) -> KeepAll:
        return cls()

    def __call__(self, targets: Targets) -> Tensor:
        return targets.valid
