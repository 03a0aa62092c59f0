"""SSD's default boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .build import PRIORS_REGISTRY
from .priors import AnchorGrid

__all__ = ["SSDAnchors", "ssd_anchors"]


@PRIORS_REGISTRY.register()
class SSDAnchors(AnchorGrid):
    """Default boxes of absolute size, other shapes on every level (Liu et al. 2016, "SSD", 2.2)."""

    @classmethod
    def from_config(cls, node, strides: Sequence[int]) -> SSDAnchors:
        """Raises ValueError where the lists of the config do not fit the number of levels."""
        shapes = ssd_anchors(min_sizes=node.MIN_SIZES, aspect_ratios=node.ASPECT_RATIOS)
        if len(shapes) != len(strides):
            raise ValueError(
                f"PRIORS.MIN_SIZES and ASPECT_RATIOS are for {len(shapes)} levels, but there "
                f"are {len(strides)}"
            )
        return cls(shapes=shapes, strides=strides, offset=node.OFFSET)


def ssd_anchors(
    *, min_sizes: Sequence[float], aspect_ratios: Sequence[Sequence[float]]
) -> list[list[tuple[float, float]]]:
    """(width, height) of each default box of a cell, per level, in pixels.

    Their order is that of the SSD authors' Caffe code (and mmdetection's): a square of the level's
    size s, a square of ``sqrt(s * s_next)``, then for each ratio r the wide box
    ``(s sqrt(r), s / sqrt(r))`` and the tall one ``(s / sqrt(r), s sqrt(r))``.

    Args:
        min_sizes: s of each level, ascending, and one more, the s_next of the last level.
        aspect_ratios: per level the ratios r above 1 of the longer to the shorter side.
    """
    numbers = all(isinstance(s, (int, float)) and s > 0 for s in min_sizes)
    if len(min_sizes) < 2 or not numbers or sorted(set(min_sizes)) != list(min_sizes):
        raise ValueError(
            "PRIORS.MIN_SIZES must be ascending positive numbers, one more than levels, "
            f"got {list(min_sizes)}"
        )
    nested = all(
        isinstance(ratios, (list, tuple)) and all(ratio > 1 for ratio in ratios)
        for ratios in aspect_ratios
    )
    if len(aspect_ratios) != len(min_sizes) - 1 or not nested:
        raise ValueError(
            f"PRIORS.ASPECT_RATIOS of SSDAnchors must be {len(min_sizes) - 1} lists of numbers "
            f"above 1, one for each level of MIN_SIZES, got {list(aspect_ratios)}"
        )
    shapes = []
    for i, ratios in enumerate(aspect_ratios):
        size, between = min_sizes[i], math.sqrt(min_sizes[i] * min_sizes[i + 1])
        level = [(size, size), (between, between)]
        for ratio in ratios:
            longer, shorter = size * math.sqrt(ratio), size / math.sqrt(ratio)
            level += [(longer, shorter), (shorter, longer)]
        shapes.append(level)
    return shapes
