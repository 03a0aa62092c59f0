"""Class logits before they are compared, ranked or scored."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from resobj_d2.structures import LevelMaps

__all__ = ["mean_of_sigmoids", "without_excluded", "without_nan"]


def mean_of_sigmoids(maps: Sequence[LevelMaps]) -> LevelMaps:
    """Logits of the mean probability of several stages."""
    levels = []
    for level in zip(*(x.levels for x in maps), strict=True):
        mean = sum(torch.sigmoid(x.float()) for x in level) / len(level)
        levels.append(torch.logit(mean))
    return LevelMaps(levels, maps[-1].channels)


def without_nan(difficulty: Tensor) -> Tensor:
    """NaN counts as hardest: a sampler that dropped it would hide that training has diverged."""
    return torch.where(difficulty.isnan(), math.inf, difficulty)


def without_excluded(logits: Tensor, excluded: Tensor | None) -> Tensor:
    """(N, R, K) logits; excluded classes get a logit without loss or gradient as a negative."""
    if excluded is None:
        return logits
    classes = torch.arange(logits.shape[-1], device=logits.device)
    return torch.where(excluded[..., None] == classes, -1e4, logits)
