"""Bi-directional feature pyramid (Tan, Pang, Le, "EfficientDet", section 3), and its relatives.

The relatives are those of the paper's Table 5, made of the same nodes: repeated FPN, PANet, NAS-FPN
and fully connected FPN.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from resobj_d2.modeling.heads.separable import SeparableConv
from resobj_d2.modeling.heads.single_cell_norm import SingleCellBatchNorm
from resobj_d2.options import Option, build

from .topologies import TOPOLOGIES, NodeSpec

__all__ = ["BiFPN", "WeightedFusion", "build_bifpn_backbone"]


class WeightedFusion(nn.Module):
    """A weighted mean of maps of equal shape with one learned weight per map.

    Args:
        inputs: number of maps.
        method: "fast": ``sum relu(w_i) x_i / (eps + sum relu(w_i))`` (section 3.3);
            "softmax": weights ``softmax(w)``; "sum": no weights.
    """

    def __init__(self, *, inputs: int, method: str, eps: float = 1e-4) -> None:
        super().__init__()
        if method not in ("fast", "softmax", "sum"):
            raise ValueError(f"BIFPN.FUSION must be 'fast', 'softmax' or 'sum', got {method!r}")
        self.method = method
        self.eps = eps
        if method != "sum":
            self.weight = nn.Parameter(torch.ones(inputs))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuses maps (N, C, H, W) into one of the same shape."""
        if self.method == "sum":
            return torch.stack(list(maps)).sum(dim=0)
        if self.method == "softmax":
            weights = torch.softmax(self.weight, dim=0)
        else:
            positive = F.relu(self.weight)
            weights = positive / (positive.sum() + self.eps)
        return sum(w * x for w, x in zip(weights.unbind(), maps, strict=True))


class _Node(nn.Module):
    """Fusion, SiLU, a depthwise-separable 3x3 convolution and normalisation."""

    def __init__(self, *, channels: int, inputs: int, fusion: str, momentum: float) -> None:
        super().__init__()
        self.fusion = WeightedFusion(inputs=inputs, method=fusion)
        self.conv = SeparableConv(in_channels=channels, out_channels=channels)
        self.norm = SingleCellBatchNorm(channels, momentum=momentum)

    def forward(self, *maps: Tensor) -> Tensor:
        x = F.silu(self.fusion(maps))
        return self.norm(self.conv(x))


class _AttentionFusion(nn.Module):
    """NAS-FPN's global pooling: ``a * sigmoid(mean(b)) + b`` for maps a and b."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        a, b = maps
        return a * torch.sigmoid(b.mean(dim=(2, 3), keepdim=True)) + b


class _Lateral(nn.Sequential):
    """1x1 convolution and normalisation, from a backbone map to the pyramid's width."""

    def __init__(self, *, in_channels: int, channels: int, momentum: float) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 1), SingleCellBatchNorm(channels, momentum=momentum)
        )


class _Layer(nn.Module):
    """Top-down, then bottom-up path over L levels (Figure 2d).

    Args:
        channels: W.
        levels: L.
        fusion: see :class:`WeightedFusion`.
        momentum: see :class:`SingleCellBatchNorm`.
        in_channels: channels of the finest maps, if these come from the backbone. Every edge from
            such a map has its own 1x1 convolution; all other maps are W wide.
    """

    def __init__(
        self,
        *,
        channels: int,
        levels: int,
        fusion: str,
        momentum: float,
        in_channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        node = partial(_Node, channels=channels, fusion=fusion, momentum=momentum)
        lateral = partial(_Lateral, channels=channels, momentum=momentum)
        self.down = nn.ModuleList(node(inputs=2) for _ in range(1, levels - 1))
        self.up = nn.ModuleList(
            node(inputs=2 if i in (0, levels - 1) else 3) for i in range(levels)
        )

        def laterals(skip: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Identity() if c == channels else lateral(in_channels=c)
                for c in in_channels[skip:]
            )

        # The finest level has no top-down node; its only edge leads to its bottom-up node.
        self.down_laterals = laterals(1)
        self.up_laterals = laterals(0)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps L maps, finest first, to L maps of the pyramid's width."""
        last = len(maps) - 1
        to_down = list(maps)
        for i, lateral in enumerate(self.down_laterals, start=1):
            to_down[i] = lateral(maps[i])
        to_up = list(maps)
        for i, lateral in enumerate(self.up_laterals):
            to_up[i] = lateral(maps[i])
        middle = {}
        coarser = maps[last]
        for i in range(last - 1, 0, -1):
            x = to_down[i]
            coarser = self.down[i - 1](x, _grow(coarser, x))
            middle[i] = coarser
        out = [self.up[0](to_up[0], _grow(coarser, to_up[0]))]
        for i in range(1, last):
            out.append(self.up[i](to_up[i], middle[i], _shrink(out[-1])))
        out.append(self.up[last](maps[last], _shrink(out[-1])))
        return out


class _GraphLayer(nn.Module):
    """A layer with the nodes of a topology; the first one has a 1x1 convolution per backbone map.

    Args:
        channels, fusion, momentum, in_channels: see :class:`_Layer`.
        nodes: see :data:`.topologies.TOPOLOGIES`.
    """

    def __init__(
        self,
        *,
        channels: int,
        nodes: Sequence[NodeSpec],
        fusion: str,
        momentum: float,
        in_channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.specs = list(nodes)
        self.laterals = nn.ModuleList(
            _Lateral(in_channels=c, channels=channels, momentum=momentum) for c in in_channels
        )
        self.nodes = nn.ModuleList()
        for spec in nodes:
            node = _Node(
                channels=channels, inputs=len(spec.inputs), fusion=fusion, momentum=momentum
            )
            if spec.attends:
                node.fusion = _AttentionFusion()
            self.nodes.append(node)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps L maps, finest first, to L maps of the pyramid's width."""
        maps = list(maps)
        for i, lateral in enumerate(self.laterals):
            maps[i] = lateral(maps[i])
        sizes = [x.shape[-2:] for x in maps]
        outputs: dict[int, Tensor] = {}
        for spec, node in zip(self.specs, self.nodes, strict=True):
            outputs[spec.level] = node(*(_resize(maps[i], sizes[spec.level]) for i in spec.inputs))
            maps.append(outputs[spec.level])
        return [outputs[level] for level in range(len(sizes))]


def _resize(x: Tensor, size: torch.Size) -> Tensor:
    """(N, C, H, W) to ``size``, some halvings or doublings away."""
    while x.shape[-2] > size[0] or x.shape[-1] > size[1]:
        x = _shrink(x)
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="nearest")


def _grow(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


def _shrink(x: Tensor) -> Tensor:
    return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class BiFPN(Backbone):
    """Turns a backbone's strides 8, 16, 32 into P3-P7, refined by BiFPN or other layers.

    P6 is the coarsest map after a 1x1 convolution, normalisation and max-pooling; P7 is P6 pooled.

    Args:
        bottom_up: the backbone.
        in_features: its three maps, finest first, each half the size of the previous one.
        channels: W.
        num_layers: number of layers.
        topology: "bifpn", or another of :data:`.topologies.TOPOLOGIES` made of the same nodes.
        fusion: see :class:`WeightedFusion`.
        momentum: see :class:`SingleCellBatchNorm`.
    """

    def __init__(
        self,
        *,
        bottom_up: Backbone,
        in_features: Annotated[
            Sequence[str], Option("three maps of the backbone, finest first")
        ] = ("c3", "c4", "c5"),
        channels: Annotated[int, Option("width of the pyramid", source="EfficientDet, Eq. 1")] = 64,
        num_layers: Annotated[int, Option("number of layers", source="EfficientDet, Eq. 1")] = 3,
        topology: Annotated[
            str,
            Option(
                "what a layer connects: bifpn, fpn (top-down), panet, nas_fpn or fully_connected",
                source="EfficientDet, Table 5",
            ),
        ] = "bifpn",
        fusion: Annotated[
            str,
            Option(
                "fusion weights: fast (normalised by their sum), softmax or sum (no weights)",
                source="EfficientDet, section 3.3",
            ),
        ] = "fast",
        momentum: Annotated[
            float,
            Option("momentum of its batch normalisation (torch's convention)", key="BN_MOMENTUM"),
        ] = 0.01,
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        unknown = sorted(set(in_features) - set(shapes))
        if unknown or len(in_features) != 3:
            raise ValueError(
                f"BIFPN.IN_FEATURES must be three of {sorted(shapes)}, got {list(in_features)}"
            )
        strides = [shapes[name].stride for name in in_features]
        if strides != [strides[0], 2 * strides[0], 4 * strides[0]]:
            raise ValueError(f"BIFPN.IN_FEATURES must have strides that double, got {strides}")
        if num_layers < 1:
            raise ValueError(f"BIFPN.NUM_LAYERS must be at least 1, got {num_layers}")
        self.bottom_up = bottom_up
        self.in_features = list(in_features)
        widths = [shapes[name].channels for name in in_features]
        self.coarse = _Lateral(in_channels=widths[-1], channels=channels, momentum=momentum)
        layer = partial(_Layer, levels=5)
        if topology != "bifpn":
            if topology not in TOPOLOGIES:
                names = ", ".join(("bifpn", *TOPOLOGIES))
                raise ValueError(f"BIFPN.TOPOLOGY must be one of {names}, got {topology!r}")
            layer = partial(_GraphLayer, nodes=TOPOLOGIES[topology](5))
        self.layers = nn.ModuleList(
            layer(
                channels=channels,
                fusion=fusion,
                momentum=momentum,
                in_channels=[] if i else widths,
            )
            for i in range(num_layers)
        )
        first = strides[0].bit_length() - 1
        self._shapes = {
            f"p{first + i}": ShapeSpec(channels=channels, stride=strides[0] * 2**i)
            for i in range(5)
        }

    @property
    def size_divisibility(self) -> int:
        return max(spec.stride for spec in self._shapes.values())

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Detectron2's constraints on the padding of a batch, besides ``size_divisibility``."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self._shapes)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """image: (N, 3, H, W), H and W multiples of ``size_divisibility``."""
        features = self.bottom_up(image)
        maps = [features[name] for name in self.in_features]
        maps.append(_shrink(self.coarse(maps[-1])))
        maps.append(_shrink(maps[-1]))
        for layer in self.layers:
            maps = layer(maps)
        return dict(zip(self._shapes, maps, strict=True))


@BACKBONE_REGISTRY.register()
def build_bifpn_backbone(cfg, input_shape: ShapeSpec) -> BiFPN:
    """BiFPN on the backbone named by ``MODEL.BIFPN.BOTTOM_UP``."""
    node = cfg.MODEL.BIFPN
    return build(BiFPN, node, bottom_up=BACKBONE_REGISTRY.get(node.BOTTOM_UP)(cfg, input_shape))
