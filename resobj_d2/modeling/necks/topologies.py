"""Which maps feed which node in a layer of a feature pyramid, level by level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["TOPOLOGIES", "NodeSpec"]


@dataclass(frozen=True)
class NodeSpec:
    """One node of a layer.

    Attributes:
        level: of its map, from the finest (0).
        inputs: indices into the layer's L input maps followed by the earlier nodes.
        attends: fused by NAS-FPN's attention: the first map, scaled by the sigmoid of the second
            one's mean over all positions, plus the second.
    """

    level: int
    inputs: tuple[int, ...]
    attends: bool = False


def _top_down(levels: int) -> list[NodeSpec]:
    """FPN (Lin et al. 2017): from the coarsest level to the finest."""
    nodes = [NodeSpec(levels - 1, (levels - 1,))]
    for level in range(levels - 2, -1, -1):
        nodes.append(NodeSpec(level, (level, levels + len(nodes) - 1)))
    return nodes


def _panet(levels: int) -> list[NodeSpec]:
    """PANet (Liu et al. 2018): FPN's path, then one from the finest level to the coarsest."""
    nodes = _top_down(levels)
    finest = 2 * levels - 1
    nodes.append(NodeSpec(0, (finest,)))
    for level in range(1, levels):
        nodes.append(NodeSpec(level, (finest - level, levels + len(nodes) - 1)))
    return nodes


def _fully_connected(levels: int) -> list[NodeSpec]:
    """Every level is made from all levels (EfficientDet, section 5.2)."""
    return [NodeSpec(level, tuple(range(levels))) for level in range(levels)]


def _nas_fpn(levels: int) -> list[NodeSpec]:
    """NAS-FPN's merging cells (Ghiasi, Lin, Le 2019, Figure 6), for P3 to P7."""
    if levels != 5:
        raise ValueError(f"NAS-FPN has 5 levels, got {levels}")
    p3, p4, p5, p6, p7 = range(5)
    return [
        NodeSpec(1, (p6, p4), attends=True),  # 5
        NodeSpec(1, (5, p4)),  # 6
        NodeSpec(0, (6, p3)),  # 7: P3
        NodeSpec(1, (7, 6)),  # 8: P4
        NodeSpec(2, (8, 7), attends=True),  # 9
        NodeSpec(2, (9, p5)),  # 10: P5
        NodeSpec(4, (10, 6), attends=True),  # 11
        NodeSpec(4, (11, p7)),  # 12: P7
        NodeSpec(3, (12, 10), attends=True),  # 13: P6
    ]


TOPOLOGIES: dict[str, Callable[[int], list[NodeSpec]]] = {
    "fpn": _top_down,
    "panet": _panet,
    "nas_fpn": _nas_fpn,
    "fully_connected": _fully_connected,
}
"""By name, the nodes of a layer over L levels; the last node of a level is its output."""
