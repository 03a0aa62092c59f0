"""YOLOv3's priors and box parametrisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from resobj_d2.options import Option

from .base import Coder
from .build import CODER_REGISTRY, PRIORS_REGISTRY
from .priors import AnchorGrid, Offset

__all__ = ["YOLOAnchors", "YOLOCoder"]


@PRIORS_REGISTRY.register()
class YOLOAnchors(AnchorGrid):
    """Priors of arbitrary shapes, listed in the config (Redmon and Farhadi, "YOLOv3", 2.3).

    Args:
        strides: distance between neighbouring cells in pixels, per level.

    Raises:
        ValueError: ``sizes`` is not a list of [width, height] for each level.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int],
        sizes: Annotated[
            Sequence, Option("for each level, finest first, its [width, height] pairs in pixels")
        ] = (),
        offset: Offset = 0.0,
    ) -> None:
        pairs = all(
            isinstance(level, (list, tuple)) and level and all(_is_size(pair) for pair in level)
            for level in sizes
        )
        if len(sizes) != len(strides) or not pairs:
            raise ValueError(
                f"PRIORS.SIZES of YOLOAnchors must be a list of positive [width, height] for each "
                f"of the {len(strides)} levels, finest first, got {list(sizes)}"
            )
        super().__init__(shapes=sizes, strides=strides, offset=offset)


def _is_size(pair: object) -> bool:
    return (
        isinstance(pair, (list, tuple))
        and len(pair) == 2
        and all(isinstance(x, (int, float)) and 0 < x < math.inf for x in pair)
    )


@CODER_REGISTRY.register()
class YOLOCoder(Coder):
    """``(tx, ty, tw, th)``: the centre inside the anchor's cell, the size relative to the anchor.

    ``x = anchor_x + (sigmoid(tx) - 1/2) stride``, ``w = anchor_w exp(tw)`` (YOLOv3, section 2.1),
    for anchors in the middle of their cells (``PRIORS.OFFSET: 0.5``). The predicted centre cannot
    leave the cell.

    Args:
        scale_clamp: upper bound of tw and th when decoding, so that exp cannot overflow.
        margin: minimum distance, in cells, of encoded centres from the cell's border, where t would
            be infinite.
    """

    delta_space = "cell_deltas"
    anchor_offset = 0.5

    def __init__(self, *, scale_clamp: float = math.log(1000.0 / 16), margin: float = 1e-6) -> None:
        self.scale_clamp = scale_clamp
        self.margin = margin

    def encode(self, anchors: Tensor, boxes: Tensor, strides: Tensor) -> Tensor:
        """Deltas (..., 4) that turn ``anchors`` into ``boxes``; both need a positive size.

        Centres outside an anchor's cell are clamped to the nearest one that it can predict.

        Args:
            strides: (R, 1) stride, in pixels, of each anchor's level.
        """
        shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2
        place = (shift / strides + 0.5).clamp(self.margin, 1 - self.margin)
        size = (boxes[..., 2:] - boxes[..., :2]) / (anchors[..., 2:] - anchors[..., :2])
        return torch.cat((torch.logit(place), torch.log(size)), dim=-1)

    def decode(self, anchors: Tensor, deltas: Tensor, strides: Tensor) -> Tensor:
        """Boxes (..., 4) in float32, not clipped to the image."""
        deltas = deltas.float()
        middle = (anchors[..., :2] + anchors[..., 2:]) / 2
        centre = middle + (torch.sigmoid(deltas[..., :2]) - 0.5) * strides
        scale = torch.exp(deltas[..., 2:].clamp(max=self.scale_clamp))
        half = 0.5 * (anchors[..., 2:] - anchors[..., :2]) * scale
        return torch.cat((centre - half, centre + half), dim=-1)
