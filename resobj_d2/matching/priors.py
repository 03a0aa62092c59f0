"""Anchors on a regular grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from resobj_d2.options import Option
from resobj_d2.precision import Float32Buffers
from resobj_d2.structures import Priors

__all__ = ["AnchorGrid"]


Offset = Annotated[
    float, Option("position of the first cell's centre, in strides, in [0, 1)", key="OFFSET")
]


class AnchorGrid(Float32Buffers):
    """Base class of priors: the same few anchors at every cell of a level.

    ``num_anchors`` lists A_l per level. Called with the (H_l, W_l) of each level it returns
    :class:`Priors`.

    Args:
        shapes: per level, the (width, height) in pixels of each anchor of a cell.
        strides: distance between neighbouring cells in pixels, per level.
        offset: position of the first cell's centre, in strides: 0 as in Detectron2 (default), 0.5
            for centred cells.
    """

    def __init__(
        self,
        *,
        shapes: Sequence[Sequence[tuple[float, float]]],
        strides: Sequence[int],
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        if len(shapes) != len(strides):
            raise ValueError(f"{len(shapes)} levels of shapes, but {len(strides)} strides")
        if sorted(set(strides)) != list(strides):
            raise ValueError(f"strides must be ascending (finest level first), got {list(strides)}")
        if not 0 <= offset < 1:
            raise ValueError(f"offset must be in [0, 1), got {offset}")
        if any(w <= 0 or h <= 0 for level in shapes for w, h in level):
            raise ValueError("anchor widths and heights must be positive")
        self.strides = list(strides)
        self.offset = offset
        self.num_anchors = [len(level) for level in shapes]
        for i, level in enumerate(shapes):
            cell = torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in level])
            self.register_buffer(f"cell_{i}", cell, persistent=False)

    def forward(self, sizes: Sequence[tuple[int, int]]) -> Priors:
        """
        Args:
            sizes: (H_l, W_l) of each level's feature map.
        """
        if len(sizes) != len(self.strides):
            raise ValueError(f"{len(sizes)} feature maps, but {len(self.strides)} anchor levels")
        boxes = [self._level(i, height, width) for i, (height, width) in enumerate(sizes)]
        return Priors(
            boxes=torch.cat(boxes),
            anchors_per_level=[b.shape[0] for b in boxes],  # not len: torch.jit.trace would keep it
            map_sizes=list(sizes),
            strides=self.strides,
        )

    def _level(self, level: int, height: int, width: int) -> Tensor:
        cell = getattr(self, f"cell_{level}")
        stride = self.strides[level]
        x = (torch.arange(width, device=cell.device) + self.offset) * stride
        y = (torch.arange(height, device=cell.device) + self.offset) * stride
        y, x = torch.meshgrid(y, x, indexing="ij")
        shifts = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4).to(cell.dtype)
        return (shifts + cell).reshape(-1, 4)
