"""SSD's default boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from resobj_d2.options import Option

from .build import PRIORS_REGISTRY
from .priors import AnchorGrid, Offset

__all__ = ["SSDAnchors", "ssd_anchors"]


@PRIORS_REGISTRY.register()
class SSDAnchors(AnchorGrid):
    """Default boxes of absolute size, with shapes that vary by level (Liu et al. 2016, "SSD", 2.2).

    Args:
        strides: distance between neighbouring cells in pixels, per level.
        aspect_ratios: a list for each level; see :func:`ssd_anchors`.

    Raises:
        ValueError: the lists do not match the number of levels.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int],
        min_sizes: Annotated[
            Sequence,
            Option("size in pixels of each level's boxes, plus one more", source="SSD, 2.2"),
        ] = (),
        aspect_ratios: Annotated[
            Sequence, Option("per level, ratios of longer to shorter side, above 1", follows=True)
        ],
        offset: Offset = 0.0,
    ) -> None:
        shapes = ssd_anchors(min_sizes=min_sizes, aspect_ratios=aspect_ratios)
        if len(shapes) != len(strides):
            raise ValueError(
                f"PRIORS.MIN_SIZES and ASPECT_RATIOS are for {len(shapes)} levels, but there "
                f"are {len(strides)}"
            )
        super().__init__(shapes=shapes, strides=strides, offset=offset)


def ssd_anchors(
    *, min_sizes: Sequence[float], aspect_ratios: Sequence[Sequence[float]]
) -> list[list[tuple[float, float]]]:
    """(width, height) of each default box of a cell, per level, in pixels.

    The order is that of the SSD authors' Caffe code (and mmdetection): a square of the level's size
    s, a square of ``sqrt(s * s_next)``, then for each ratio r the wide box
    ``(s sqrt(r), s / sqrt(r))`` and the tall one ``(s / sqrt(r), s sqrt(r))``.

    Args:
        min_sizes: s of each level, ascending, plus the s_next of the last level.
        aspect_ratios: per level, the ratios r above 1 of the longer to the shorter side.
    """
    numbers = all(isinstance(s, (int, float)) and s > 0 for s in min_sizes)
    if len(min_sizes) < 2 or not numbers or sorted(set(min_sizes)) != list(min_sizes):
        raise ValueError(
            "PRIORS.MIN_SIZES must be ascending positive numbers, one more than there are levels, "
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
