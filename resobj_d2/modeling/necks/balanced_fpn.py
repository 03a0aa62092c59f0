"""Balanced Feature Pyramid (Pang et al., "Libra R-CNN", section 3.2), on top of any pyramid."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from resobj_d2.compat import padding_constraints
from resobj_d2.options import Option, build

__all__ = ["BalancedFeaturePyramid", "NonLocalRefine", "build_balanced_fpn_backbone"]


class NonLocalRefine(nn.Module):
    """``x + W y`` with ``y = softmax(theta(x)^T phi(x)) g(x)`` over all positions of a map.

    The embedded Gaussian form of Wang et al., "Non-local Neural Networks", Eq. 6, without channel
    reduction and scaling, as in Libra R-CNN. W is initialised to zero, so an untrained module is
    the identity.

    Args:
        channels: number of channels of the map.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(channels, channels, 1)
        self.phi = nn.Conv2d(channels, channels, 1)
        self.g = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        for conv in (self.theta, self.phi, self.g):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W). The (HW, HW) attention is never stored if torch can avoid it."""
        query, key, value = (
            conv(x).flatten(2).transpose(1, 2) for conv in (self.theta, self.phi, self.g)
        )
        if torch.compiler.is_exporting():  # that function would tie the graph to a batch size
            y = torch.softmax(query @ key.transpose(1, 2), dim=-1) @ value
            return x + self.out(y.transpose(1, 2).contiguous().view(x.shape))
        # With a single head torch chooses kernels whose memory is linear in HW.
        y = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0)
        return x + self.out(y[:, 0].transpose(1, 2).reshape(x.shape))


class BalancedFeaturePyramid(Backbone):
    """Adds to every level of a pyramid the refined mean of all levels.

    The levels are resized to one level (adaptive max-pooling down, nearest neighbour up), averaged
    (Libra R-CNN, Eq. 4), refined, resized back and added. Shapes and names are those of
    ``pyramid``.

    Args:
        pyramid: a backbone whose outputs all have the same number of channels.
        refine_level: the level to which all are resized, counted from the finest (0).
        refine: module that maps (N, C, H, W) to the same shape.
    """

    def __init__(
        self,
        *,
        pyramid: Backbone,
        refine_level: Annotated[
            int,
            Option("level that all are resized to, from the finest (0): 1 for P3-P7, 2 for P2-P6"),
        ] = 1,
        refine: nn.Module,
    ) -> None:
        super().__init__()
        self.pyramid = pyramid
        shapes = pyramid.output_shape()
        self.levels = sorted(shapes, key=lambda name: shapes[name].stride)
        if not 0 <= refine_level < len(self.levels):
            raise ValueError(
                f"BFP.REFINE_LEVEL must be 0..{len(self.levels) - 1} for the levels "
                f"{self.levels}, got {refine_level}"
            )
        self.refine_level = refine_level
        self.refine = refine

    @property
    def size_divisibility(self) -> int:
        return self.pyramid.size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Detectron2's constraints on the padding of a batch, besides ``size_divisibility``."""
        return padding_constraints(self.pyramid)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self.pyramid.output_shape()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """image: (N, 3, H, W). Returns the maps of ``pyramid``, balanced."""
        features = self.pyramid(image)
        strides = {name: shape.stride for name, shape in self.output_shape().items()}
        middle = self.levels[self.refine_level]
        size = features[middle].shape[-2:]
        gathered = [
            _resize(features[name], size, strides[middle] / strides[name]) for name in self.levels
        ]
        mean = self.refine(torch.stack(gathered).mean(dim=0))
        return {
            name: x + _resize(mean, x.shape[-2:], strides[name] / strides[middle])
            for name, x in features.items()
        }


def _resize(x: Tensor, size: torch.Size, factor: float) -> Tensor:
    """(N, C, H, W) to ``size``: max-pooled where it shrinks, nearest neighbour where it grows.

    Args:
        factor: by which the strides differ; the sizes do as well, but for rounding.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return _resize_any(x, size, factor)
    if x.shape[-2:] == size:
        return x
    if x.shape[-2] >= size[0] and x.shape[-1] >= size[1]:
        return F.adaptive_max_pool2d(x, size)
    return F.interpolate(x, size=size, mode="nearest")


def _resize_any(x: Tensor, size: torch.Size, factor: float) -> Tensor:
    """:func:`_resize` in a graph for all sizes, which adaptive pooling would tie to one."""
    if factor == 1:
        return x
    if factor < 1:
        return F.interpolate(x, size=size, mode="nearest")
    widest = int(factor) + 1  # a window that starts and ends between cells
    for dim, count in ((2, size[0]), (3, size[1])):
        out = torch.arange(count, device=x.device)
        start = out * x.shape[dim] // count
        end = ((out + 1) * x.shape[dim] + count - 1) // count
        offsets = torch.arange(widest, device=x.device)
        cells = torch.minimum(start[:, None] + offsets, end[:, None] - 1)
        windows = x.index_select(dim, cells.flatten()).unflatten(dim, (count, widest))
        x = windows.amax(dim=dim + 1)
    return x


@BACKBONE_REGISTRY.register()
def build_balanced_fpn_backbone(cfg, input_shape: ShapeSpec) -> BalancedFeaturePyramid:
    """The backbone named by ``MODEL.BFP.PYRAMID``, e.g. ``build_resnet_fpn_backbone``, balanced."""
    node = cfg.MODEL.BFP
    if node.PYRAMID == build_balanced_fpn_backbone.__name__:
        raise ValueError("MODEL.BFP.PYRAMID must name the backbone to balance, not BFP itself")
    pyramid = BACKBONE_REGISTRY.get(node.PYRAMID)(cfg, input_shape)
    channels = {spec.channels for spec in pyramid.output_shape().values()}
    if len(channels) != 1:
        raise ValueError(
            f"MODEL.BFP needs levels of equal width, but {node.PYRAMID} has {sorted(channels)}"
        )
    if node.REFINE not in ("non_local", "none"):
        raise ValueError(f"MODEL.BFP.REFINE must be 'non_local' or 'none', got {node.REFINE!r}")
    refine = NonLocalRefine(channels=channels.pop()) if node.REFINE == "non_local" else None
    return build(BalancedFeaturePyramid, node, pyramid=pyramid, refine=refine or nn.Identity())
