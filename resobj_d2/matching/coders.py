"""Box parametrisations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from resobj_d2.options import Option

from .base import Coder
from .build import CODER_REGISTRY

__all__ = ["DeltaCoder", "LTRBCoder"]


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


@CODER_REGISTRY.register()
class DeltaCoder(Coder):
    """R-CNN deltas ``(dx, dy, dw, dh)`` (Girshick et al. 2014, appendix C).

    The arithmetic is that of Detectron2's ``Box2BoxTransform``, without its host
    synchronisation and for any number of leading dimensions.

    Args:
        weights: factors of dx, dy, dw and dh.
        scale_clamp: upper bound of dw and dh when decoding, so that exp cannot overflow.
    """

    def __init__(
        self,
        *,
        weights: Annotated[Sequence[float], Option("factors of dx, dy, dw and dh")] = (
            1.0,
            1.0,
            1.0,
            1.0,
        ),
        scale_clamp: float = math.log(1000.0 / 16),
    ) -> None:
        if len(weights) != 4 or any(w <= 0 for w in weights):
            raise ValueError(f"CODER.WEIGHTS must be four positive numbers, got {tuple(weights)}")
        self.weights = tuple(weights)
        self.scale_clamp = scale_clamp

    @property
    def delta_options(self) -> dict[str, object]:
        """Arguments with which an operator decodes boxes as this coder does."""
        return {"weights": self.weights, "scale_clamp": self.scale_clamp}

    def encode(self, anchors: Tensor, boxes: Tensor, strides: Tensor | None = None) -> Tensor:
        """Deltas (..., 4) that turn ``anchors`` into ``boxes``; both need a positive size."""
        anchor_centre, anchor_size = _centre_and_size(anchors)
        centre, size = _centre_and_size(boxes)
        shift = (centre - anchor_centre) / anchor_size
        scale = torch.log(size / anchor_size)
        return self._scaled(torch.cat((shift, scale), dim=-1), self.weights)

    def decode(self, anchors: Tensor, deltas: Tensor, strides: Tensor | None = None) -> Tensor:
        """Boxes (..., 4) in float32, not clipped to the image."""
        deltas = deltas.float()
        anchor_centre, anchor_size = _centre_and_size(anchors)
        deltas = self._scaled(deltas, [1 / w for w in self.weights])
        centre = deltas[..., :2] * anchor_size + anchor_centre
        scale = deltas[..., 2:].clamp(max=self.scale_clamp)
        half = 0.5 * (torch.exp(scale) * anchor_size)
        return torch.cat((centre - half, centre + half), dim=-1)

    @staticmethod
    def _scaled(deltas: Tensor, factors: Sequence[float]) -> Tensor:
        # Python numbers rather than a tensor, whose copy would make the host wait for the GPU.
        if all(factor == 1 for factor in factors):
            return deltas
        scaled = [x * factor for x, factor in zip(deltas.unbind(-1), factors, strict=True)]
        return torch.stack(scaled, dim=-1)


@CODER_REGISTRY.register()
class LTRBCoder(Coder):
    """Distances from a point to the left, top, right and bottom sides of the box.

    The point is the anchor's centre and the unit is the anchor's side, so a square anchor of S
    strides gives FSAF's offsets in units of ``S * stride`` (Zhu et al. 2019, section 3.1, S = 4).
    The ReLU at the end of FSAF's box predictor is part of ``decode``.
    """

    # The ReLU has no gradient below zero, so predictions start above it.
    initial_delta = 0.1
    identity_delta = 0.5

    def encode(self, anchors: Tensor, boxes: Tensor, strides: Tensor | None = None) -> Tensor:
        """Distances (..., 4); negative where the point lies outside the box."""
        centre, size = _centre_and_size(anchors)
        return torch.cat(
            ((centre - boxes[..., :2]) / size, (boxes[..., 2:] - centre) / size), dim=-1
        )

    def decode(self, anchors: Tensor, deltas: Tensor, strides: Tensor | None = None) -> Tensor:
        """Boxes (..., 4) in float32, not clipped to the image."""
        centre, size = _centre_and_size(anchors)
        distances = F.relu(deltas.float())
        return torch.cat(
            (centre - distances[..., :2] * size, centre + distances[..., 2:] * size), dim=-1
        )
