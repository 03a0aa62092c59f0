"""How well a model's anchors cover the objects of its data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.modeling import build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, build_anchor_generator
from torch import nn

from resobj_d2.matching import ASSIGNER_REGISTRY, PRIORS_REGISTRY
from resobj_d2.modeling.backbones import without_imagenet_weights
from resobj_d2.options import build

from .boxes import BANDS, size_bands
from .input_size import InputObjects

__all__ = ["AnchorFit", "AnchorSet", "Network", "anchor_sets", "best_ious", "fit", "network_of"]

REACHED = 0.5  # IoU from which an anchor is foreground in RetinaNet and SSD
_BINS = 10
_AT_ONCE = 1 << 20  # IoUs in memory
# They train points, whatever the size of the anchors around them.
_ANCHOR_FREE_ASSIGNERS = ("FCOSAssigner", "FSAFAssigner", "TaskAlignedAssigner")


@dataclass(frozen=True, kw_only=True)
class Network:
    """What anchors depend on besides their own keys.

    Attributes:
        levels: Detectron2's ``ShapeSpec`` of the feature maps with anchors, finest first.
        divisor: inputs are padded to a multiple of it.
        square: inputs are padded to squares of this side; 0 for none.
    """

    levels: list
    divisor: int = 1
    square: int = 0


@dataclass(frozen=True, kw_only=True)
class AnchorSet:
    """The anchors of a stream or RPN.

    Attributes:
        node: of the configuration, as "MODEL.DENSE.PRIORS".
        kind: class of the anchors.
        strides: per level, finest first.
        cells: per level (A, 4) XYXY, the anchors of the first cell.
        centred: whether the assigner compares shapes alone, moved to one centre, as YOLO's.
    """

    node: str
    kind: str
    strides: list[int]
    cells: list[np.ndarray]
    centred: bool = False


@dataclass(frozen=True, kw_only=True)
class AnchorFit:
    """The best IoU of every object with any anchor.

    Attributes:
        anchors: what they were compared with.
        objects: the objects.
        ious: (N,).
    """

    anchors: AnchorSet
    objects: InputObjects
    ious: np.ndarray

    def histogram(self) -> list[int]:
        """Objects by best IoU: ten bins of a tenth, the last with IoU 1."""
        tenths = np.minimum((self.ious * _BINS).astype(int), _BINS - 1)
        return np.bincount(tenths, minlength=_BINS).tolist()

    def share(self, rows: np.ndarray | None = None) -> float:
        """Share of objects with an IoU of at least .5 with some anchor; NaN of no object."""
        ious = self.ious if rows is None else self.ious[rows]
        return float((ious >= REACHED).mean()) if len(ious) else float("nan")

    def share_by_band(self) -> dict[str, float]:
        """By size at the network's input."""
        bands = size_bands(self.objects.areas)
        return {name: self.share(bands == i) for i, name in enumerate(BANDS)}

    def share_by_class(self) -> dict[str, float]:
        """By class name."""
        classes = self.objects.classes
        return {name: self.share(classes == k) for k, name in enumerate(self.objects.class_names)}

    def mean_over_classes(self) -> tuple[float, float]:
        """Share of reached objects and mean best IoU, means over the classes that have objects."""
        count = np.bincount(self.objects.classes)
        reached = np.bincount(self.objects.classes, self.ious >= REACHED)
        total = np.bincount(self.objects.classes, self.ious)
        there = count > 0
        if not there.any():
            return float("nan"), float("nan")
        return (
            float((reached[there] / count[there]).mean()),
            float((total[there] / count[there]).mean()),
        )


def network_of(cfg) -> Network | None:
    """Feature maps and padding of a configuration's network; None where anchors are not known."""
    features = {
        "ResObjDenseDetector": cfg.MODEL.DENSE.IN_FEATURES,
        "RetinaNet": cfg.MODEL.RETINANET.IN_FEATURES,
        "GeneralizedRCNN": cfg.MODEL.RPN.IN_FEATURES,
        "ProposalNetwork": cfg.MODEL.RPN.IN_FEATURES,
    }.get(cfg.MODEL.META_ARCHITECTURE)
    if features is None:
        return None
    backbone = build_backbone(without_imagenet_weights(cfg))
    shapes = backbone.output_shape()
    missing = [name for name in features if name not in shapes]
    if missing:
        raise ValueError(
            f"{cfg.MODEL.META_ARCHITECTURE} is to read {missing}, but {cfg.MODEL.BACKBONE.NAME} "
            f"has {sorted(shapes)}"
        )
    constraints = getattr(backbone, "padding_constraints", None) or {}
    return Network(
        levels=[shapes[name] for name in features],
        divisor=max(1, backbone.size_divisibility),
        square=int(constraints.get("square_size", 0)),
    )


def anchor_sets(cfg, network: Network | None) -> tuple[list[AnchorSet], list[str]]:
    """The anchors of a configuration, and remarks on what has none.

    Args:
        cfg: the configuration.
        network: its :func:`network_of`.
    """
    architecture = cfg.MODEL.META_ARCHITECTURE
    if network is None:
        return [], [f"the anchors of a {architecture} are not known here"]
    if architecture == "ResObjDenseDetector":
        return _dense_anchors(cfg.MODEL.DENSE, network)
    if architecture != "RetinaNet" and cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals":
        return [], ["the proposals are read from files: there are no anchors"]
    generator = build_anchor_generator(cfg, network.levels)
    if not isinstance(generator, DefaultAnchorGenerator):
        return [], [f"the anchors of a {type(generator).__name__} are not compared"]
    maps = [torch.zeros(1, 1, 1, 1)] * len(network.levels)
    cells = [boxes.tensor.double().numpy() for boxes in generator(maps)]
    return [
        AnchorSet(
            node="MODEL.ANCHOR_GENERATOR",
            kind=type(generator).__name__,
            strides=[level.stride for level in network.levels],
            cells=cells,
        )
    ], []


def _dense_anchors(dense, network: Network) -> tuple[list[AnchorSet], list[str]]:
    nodes = {"MODEL.DENSE": dense} if dense.ANCHOR_BASED else {}
    if dense.ANCHOR_FREE.ENABLED:
        nodes["MODEL.DENSE.ANCHOR_FREE"] = dense.ANCHOR_FREE
    sets, remarks = [], []
    for name, node in nodes.items():
        if node.ASSIGNER.NAME in _ANCHOR_FREE_ASSIGNERS:
            remarks.append(f"{name} is anchor-free ({node.ASSIGNER.NAME}): it has no anchors")
            continue
        if not ASSIGNER_REGISTRY.get(node.ASSIGNER.NAME).labels_by_iou:
            remarks.append(
                f"{name}: {node.ASSIGNER.NAME} has no IoU that an anchor must reach, so anchors "
                "are not compared with objects"
            )
            continue
        strides = [level.stride for level in network.levels]
        priors = build(PRIORS_REGISTRY.get(node.PRIORS.NAME), node.PRIORS, strides=strides)
        sets.append(
            AnchorSet(
                node=f"{name}.PRIORS",
                kind=node.PRIORS.NAME,
                strides=strides,
                cells=_first_cells(priors, len(strides)),
                centred=node.ASSIGNER.NAME == "YOLOAssigner",
            )
        )
    return sets, remarks


def _first_cells(priors: nn.Module, levels: int) -> list[np.ndarray]:
    grid = priors([(1, 1)] * levels)
    return [boxes.double().numpy() for boxes in grid.boxes.split(grid.anchors_per_level)]


def fit(anchors: AnchorSet, objects: InputObjects) -> AnchorFit:
    """Compare objects with anchors."""
    return AnchorFit(anchors=anchors, objects=objects, ious=best_ious(anchors, objects))


def best_ious(anchors: AnchorSet, objects: InputObjects) -> np.ndarray:
    """(N,) the highest IoU of each object with any anchor of its input.

    Anchors of one shape stand at every cell of their level, and the one with the nearest centre has
    the highest IoU. So one anchor of each shape and level is compared, not hundreds of thousands.
    """
    number = sum(len(cell) for cell in anchors.cells)
    step = max(1, _AT_ONCE // max(number, 1))
    parts = [
        _best_of(anchors, objects.boxes[i : i + step], objects.inputs[i : i + step])
        for i in range(0, len(objects), step)
    ]
    return np.concatenate([np.zeros(0), *parts])


def _best_of(anchors: AnchorSet, boxes: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    best = np.zeros(len(boxes))
    for stride, cell in zip(anchors.strides, anchors.cells, strict=True):
        cells = np.ceil(inputs / stride)  # (n, 2) rows and columns of the map
        shared = np.ones((len(boxes), len(cell)))
        for axis, count in ((0, cells[:, 1]), (1, cells[:, 0])):
            low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
            side, first = (
                cell[:, axis + 2] - cell[:, axis],
                cell[:, axis : axis + 3 : 2].mean(axis=1),
            )
            away = np.zeros_like(shared)
            if not anchors.centred:
                place = ((low + high) / 2 - first) / stride
                nearest = np.clip(np.round(place), 0, np.maximum(count, 1)[:, None] - 1)
                away = np.abs(place - nearest) * stride
            overlap = np.minimum((high - low + side) / 2 - away, np.minimum(high - low, side))
            shared *= np.maximum(overlap, 0.0)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)[:, None]
        union = area + (cell[:, 2:] - cell[:, :2]).prod(axis=1) - shared
        best = np.maximum(best, (shared / union).max(axis=1, initial=0.0))
    return best
