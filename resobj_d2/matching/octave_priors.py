"""RetinaNet's anchors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from resobj_d2.options import Option

from .build import PRIORS_REGISTRY
from .priors import AnchorGrid, Offset

__all__ = ["OctaveAnchors", "octave_anchors"]


@PRIORS_REGISTRY.register()
class OctaveAnchors(AnchorGrid):
    """``scale * stride * 2^(i / octaves)`` at each aspect ratio (RetinaNet, section 4).

    Args:
        strides: distance between neighbouring cells in pixels, per level.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int],
        scale: Annotated[
            float, Option("side of a level's smallest square anchor, in strides")
        ] = 4.0,
        scales_per_octave: Annotated[int, Option("anchor sizes per level (octave)")] = 3,
        aspect_ratios: Annotated[
            Sequence,
            Option("height / width"),
        ] = (0.5, 1.0, 2.0),
        offset: Offset = 0.0,
    ) -> None:
        shapes = octave_anchors(
            strides=strides,
            scale=scale,
            scales_per_octave=scales_per_octave,
            aspect_ratios=aspect_ratios,
        )
        super().__init__(shapes=shapes, strides=strides, offset=offset)


def octave_anchors(
    *,
    strides: Sequence[int],
    scale: float,
    scales_per_octave: int,
    aspect_ratios: Sequence[float],
) -> list[list[tuple[float, float]]]:
    """(width, height) of each anchor, sizes in the outer loop, as Detectron2 orders them.

    ``aspect_ratios`` are height / width; the area of an anchor does not depend on its ratio.
    """
    flat = all(isinstance(ratio, (int, float)) and ratio > 0 for ratio in aspect_ratios)
    if not aspect_ratios or not flat:
        raise ValueError(
            f"ASPECT_RATIOS must be a flat list of positive numbers, got {aspect_ratios}"
        )
    if scale <= 0 or scales_per_octave < 1:
        raise ValueError(
            f"SCALE must be positive and SCALES_PER_OCTAVE at least 1, got {scale} "
            f"and {scales_per_octave}"
        )
    shapes = []
    for stride in strides:
        sizes = [scale * stride * 2 ** (i / scales_per_octave) for i in range(scales_per_octave)]
        level = []
        for size in sizes:
            for ratio in aspect_ratios:
                width = math.sqrt(size**2 / ratio)
                level.append((width, ratio * width))
        shapes.append(level)
    return shapes
