"""Detectors of torchvision, mmdetection, effdet and ssd.pytorch under the names of this package's.

Anchors of a cell are numbered ratio by ratio in RetinaNets of others, size by size here; class 0 of
torchvision is the background. effdet has the square anchor of a size first, and y before x.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

__all__ = ["KNOWN_LAYOUTS", "convert_other_toolkit"]

KNOWN_LAYOUTS = (
    "this package's and Detectron2's own",
    "RetinaNet of torchvision and mmdetection",
    "Faster R-CNN (FPN) and SSD300 of torchvision",
    "EfficientDet of effdet",
    "the VGG16 of ssd.pytorch and of torchvision",
    "Darknet's files",
)
"""What :class:`.ResObjCheckpointer` can load."""

_CLS, _BOX = "streams.anchors.stages.0.cls.", "streams.anchors.stages.0.box."
_RPN, _ROI = "proposal_generator.rpn_head.", "roi_heads.box_head."

# Rows of COCO's ids that are in use, of 1 to 90.
_COCO = [i - 1 for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]

# A name, as a pattern, and what it is here: a format of its groups, all numbers.
_RESNET = (
    (r"conv1\.", "stem.conv1."),
    (r"bn1\.", "stem.conv1.norm."),
    (r"layer(\d)\.(\d+)\.conv(\d)\.", "res{0:+1}.{1}.conv{2}."),
    (r"layer(\d)\.(\d+)\.bn(\d)\.", "res{0:+1}.{1}.conv{2}.norm."),
    (r"layer(\d)\.(\d+)\.downsample\.0\.", "res{0:+1}.{1}.shortcut."),
    (r"layer(\d)\.(\d+)\.downsample\.1\.", "res{0:+1}.{1}.shortcut.norm."),
)


def _resnet(prefix: str) -> tuple[tuple[str, str], ...]:
    return tuple((prefix + theirs, "backbone.bottom_up." + ours) for theirs, ours in _RESNET)


def _torchvision_pyramid(first: int) -> tuple[tuple[str, str], ...]:
    """Of a pyramid whose finest level is p2 or p3; old versions have no ``.0``."""
    return (
        *_resnet(r"backbone\.body\."),
        (r"backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?", f"backbone.fpn_lateral{{0:+{first}}}."),
        (r"backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?", f"backbone.fpn_output{{0:+{first}}}."),
        (r"backbone\.fpn\.extra_blocks\.p(\d)\.", "backbone.top_block.p{0}."),
    )


@dataclass(frozen=True)
class _Layout:
    """Detectors of another toolkit.

    Attributes:
        name: for messages.
        mark: a name that every one of them has.
        ours: the start of a name that a model here must have to take them.
        names: pairs of a pattern and what it becomes.
        change: by the start of a name here, what happens to its tensors.
        left_out: pattern of names that have no counterpart here and need none.
        note: what differs in spite of equal weights, for the log.
        without_bias: some of its files have no biases before a normalisation, where they are 0.
        coco_ids: its classes may be COCO's ids 1 to 90, of which 80 are in use: by the start of a
            name here, what takes those.
    """

    name: str
    mark: str
    ours: str
    names: tuple[tuple[str, str], ...]
    change: Mapping[str, Callable[[Tensor], Tensor]]
    left_out: str = r".*\.num_batches_tracked"
    note: str = ""
    without_bias: bool = False
    coco_ids: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)


def _size_by_size(parameter: Tensor) -> Tensor:
    """The first dimension, of 3 ratios and 3 sizes, in the order of ``OctaveAnchors``.

    Raises:
        ValueError: there are not 9 anchors.
    """
    if parameter.shape[0] % 9:
        raise ValueError(f"its {parameter.shape[0]} outputs are not those of 9 anchors")
    return parameter.unflatten(0, (3, 3, -1)).transpose(0, 1).flatten(0, 2)


def _without_background(parameter: Tensor) -> Tensor:
    """The class logits of 9 anchors without those of class 0."""
    return _size_by_size(parameter).unflatten(0, (9, -1))[:, 1:].flatten(0, 1)


def _background_last(parameter: Tensor, *, anchors: int) -> Tensor:
    """The class logits of a level's anchors, of which the background was class 0.

    Raises:
        ValueError: there are not so many anchors.
    """
    if parameter.shape[0] % anchors:
        raise ValueError(f"its {parameter.shape[0]} outputs are not those of {anchors} anchors")
    return parameter.unflatten(0, (anchors, -1)).roll(-1, dims=1).flatten(0, 1)


def _wide_first(parameter: Tensor) -> Tensor:
    """The outputs of 9 anchors, of each size a square, a wide and a tall one, square second.

    Raises:
        ValueError: there are not 9 anchors.
    """
    if parameter.shape[0] % 9:
        raise ValueError(f"its {parameter.shape[0]} outputs are not those of 9 anchors")
    return parameter.unflatten(0, (3, 3, -1))[:, [1, 0, 2]].flatten(0, 2)


def _x_first(parameter: Tensor) -> Tensor:
    """The same of box deltas, of (y, x, h, w) as (x, y, w, h)."""
    return _wide_first(parameter).unflatten(0, (-1, 2, 2)).flip(2).flatten(0, 2)


def _in_use(parameter: Tensor, *, background: int = 0, size: int = 1) -> Tensor:
    """The outputs of the classes that COCO uses, of all anchors; as it was if it has no such.

    Args:
        background: 1 if that is the last class.
        size: numbers of a class.
    """
    ids = 90 + background
    if parameter.shape[0] % (ids * size):
        return parameter
    rows = [*_COCO, *range(90, ids)]
    return parameter.unflatten(0, (-1, ids, size))[:, rows].flatten(0, 2)


def _effdet_nodes() -> Iterator[tuple[str, str]]:
    """The nodes of a BiFPN: from the coarsest down, and then from the finest up."""
    places = ["down.2", "down.1", "down.0", "up.0", "up.1", "up.2", "up.3", "up.4"]
    for number, place in enumerate(places):
        node, ours = rf"fpn\.cell\.(\d)\.fnode\.{number}\.", f"backbone.layers.{{0}}.{place}."
        yield f"{node}combine\\.edge_weights", f"{ours}fusion.weight"
        yield f"{node}after_combine\\.conv\\.conv_dw\\.", f"{ours}conv.0."
        yield f"{node}after_combine\\.conv\\.conv_pw\\.", f"{ours}conv.1."
        yield f"{node}after_combine\\.conv\\.bn\\.", f"{ours}norm."
        # The finest of a way down has no node there.
        lateral = "down_laterals.{1:+-1}" if place.startswith("down") else "up_laterals.{1}"
        for layer, index in (("conv", 0), ("bn", 1)):
            yield (
                f"{node}combine\\.resample\\.(\\d)\\.conv\\.{layer}\\.",
                f"backbone.layers.{{0}}.{lateral}.{index}.",
            )


def _effdet_head(net: str, tower: str, predictor: str) -> tuple[tuple[str, str], ...]:
    return (
        (rf"{net}\.conv_rep\.(\d)\.conv_dw\.", f"{tower}convs.{{0}}.0."),
        (rf"{net}\.conv_rep\.(\d)\.conv_pw\.", f"{tower}convs.{{0}}.1."),
        (rf"{net}\.bn_rep\.(\d)\.(\d)\.bn\.", f"{tower}norms.{{0}}.{{1}}."),
        (rf"{net}\.predict\.conv_dw\.", f"{predictor}conv.0."),
        (rf"{net}\.predict\.conv_pw\.", f"{predictor}conv.1."),
    )


_LAYOUTS = (
    _Layout(
        name="torchvision's RetinaNet",
        mark="head.classification_head.cls_logits.weight",
        ours=_CLS,
        names=(
            *_torchvision_pyramid(3),
            (
                r"head\.classification_head\.conv\.(\d)\.(?:0\.)?(?=weight|bias)",
                "tower.cls.{0:*2}.",
            ),
            (r"head\.regression_head\.conv\.(\d)\.(?:0\.)?(?=weight|bias)", "tower.box.{0:*2}."),
            (r"head\.classification_head\.cls_logits\.", _CLS),
            (r"head\.regression_head\.bbox_reg\.", _BOX),
        ),
        change={_CLS: _without_background, _BOX: _size_by_size},
        coco_ids={_CLS: _in_use},
    ),
    _Layout(
        name="mmdetection's RetinaNet",
        mark="bbox_head.retina_cls.weight",
        ours=_CLS,
        names=(
            *_resnet(r"backbone\."),
            (r"neck\.lateral_convs\.(\d)\.conv\.", "backbone.fpn_lateral{0:+3}."),
            (r"neck\.fpn_convs\.([012])\.conv\.", "backbone.fpn_output{0:+3}."),
            (r"neck\.fpn_convs\.([34])\.conv\.", "backbone.top_block.p{0:+3}."),
            (r"bbox_head\.cls_convs\.(\d)\.conv\.", "tower.cls.{0:*2}."),
            (r"bbox_head\.reg_convs\.(\d)\.conv\.", "tower.box.{0:*2}."),
            (r"bbox_head\.retina_cls\.", _CLS),
            (r"bbox_head\.retina_reg\.", _BOX),
        ),
        change={_CLS: _size_by_size, _BOX: _size_by_size},
    ),
    _Layout(
        name="torchvision's Faster R-CNN",
        mark="roi_heads.box_predictor.cls_score.weight",
        ours=_RPN,
        names=(
            *_torchvision_pyramid(2),
            (r"rpn\.head\.conv\.(?:0\.0\.)?", f"{_RPN}conv."),
            (r"rpn\.head\.cls_logits\.", f"{_RPN}objectness_logits."),
            (r"rpn\.head\.bbox_pred\.", f"{_RPN}anchor_deltas."),
            (r"roi_heads\.box_head\.fc6\.", f"{_ROI}fc1."),
            (r"roi_heads\.box_head\.fc7\.", f"{_ROI}fc2."),
            (r"roi_heads\.box_predictor\.", "roi_heads.box_predictor."),
        ),
        change={
            "roi_heads.box_predictor.cls_score.": lambda x: x.roll(-1, 0),  # background last
            "roi_heads.box_predictor.bbox_pred.": lambda x: x[4:],
        },
        coco_ids={
            "roi_heads.box_predictor.cls_score.": partial(_in_use, background=1),
            "roi_heads.box_predictor.bbox_pred.": partial(_in_use, size=4),
        },
    ),
    _Layout(
        name="torchvision's SSD300",
        mark="backbone.scale_weight",
        ours="backbone.bottom_up.fc.0.",
        names=(
            (r"backbone\.scale_weight", "backbone.bottom_up.norm.weight"),
            (r"backbone\.features\.(\d+)\.", "backbone.bottom_up.features.{0}."),
            (r"backbone\.extra\.0\.([135])\.", "backbone.bottom_up.features.{0:+23}."),
            (r"backbone\.extra\.0\.7\.1\.", "backbone.bottom_up.fc.0."),
            (r"backbone\.extra\.0\.7\.3\.", "backbone.bottom_up.fc.2."),
            (r"backbone\.extra\.([12])\.(\d)\.", "backbone.extras.{0:+-1}.{1}."),
            (r"head\.classification_head\.module_list\.([0-3])\.", _CLS + "levels.{0}."),
            (r"head\.regression_head\.module_list\.([0-3])\.", _BOX + "levels.{0}."),
        ),
        change={
            f"{_CLS}levels.{level}.": partial(_background_last, anchors=anchors)
            for level, anchors in enumerate((4, 6, 6, 6))
        },
        left_out=r"backbone\.extra\.[34]|head\.\w+\.module_list\.[45]",
        coco_ids={_CLS: partial(_in_use, background=1)},
        note="its two coarsest levels, of other strides, are left out",
    ),
    _Layout(
        name="effdet's EfficientDet",
        mark="fpn.cell.0.fnode.0.after_combine.conv.conv_dw.weight",
        ours="backbone.layers.0.down.0.",
        names=(
            (r"backbone\.", "backbone.bottom_up.model."),
            (r"fpn\.resample\.3\.conv\.conv\.", "backbone.coarse.0."),
            (r"fpn\.resample\.3\.conv\.bn\.", "backbone.coarse.1."),
            *_effdet_nodes(),
            *_effdet_head("class_net", "tower.cls.", _CLS),
            *_effdet_head("box_net", "tower.box.", _BOX),
        ),
        change={f"{_CLS}conv.1.": _wide_first, f"{_BOX}conv.1.": _x_first},
        note="its anchors are 1.4 by 0.7 where those here are 1.41 by 0.71, and its models tf_* "
        "pad maps before pooling at one side",
        without_bias=True,
        coco_ids={_CLS: _in_use},
    ),
    _Layout(
        name="the VGG16 of ssd.pytorch",
        mark="vgg.31.weight",
        ours="backbone.bottom_up.fc.0.",
        names=(
            (r"vgg\.31\.", "backbone.bottom_up.fc.0."),
            (r"vgg\.33\.", "backbone.bottom_up.fc.2."),
            (r"vgg\.(\d+)\.", "backbone.bottom_up.features.{0}."),
            (r"L2Norm\.", "backbone.bottom_up.norm."),
        ),
        change={},
        # SSD300's extra levels and heads are of other shapes.
        left_out=r"(extras|loc|conf)\.",
    ),
)


class _Number(int):
    """A number whose format may be a sum or a product: ``{0:+3}``, ``{0:*2}``."""

    def __format__(self, spec: str) -> str:
        if spec.startswith("+"):
            return str(self + int(spec[1:]))
        if spec.startswith("*"):
            return str(self * int(spec[1:]))
        return super().__format__(spec)


def convert_other_toolkit(weights: Mapping, own: Mapping[str, Tensor]) -> tuple[str, dict] | None:
    """Weights under the names that they have here.

    Args:
        weights: of another toolkit, by their names there.
        own: state of the model that shall take them.

    Returns:
        What they are, for a message, and the weights; None where they are of no known layout, or
        the model is of another kind.

    Raises:
        ValueError: they are of a known layout, but do not fit; the message says which.
    """
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    for layout in _LAYOUTS:
        # A Faster R-CNN of this package or Detectron2 has the same mark as torchvision's.
        if layout.mark not in weights or not set(weights).isdisjoint(own) and _is_own(weights):
            continue
        if any(name.startswith(layout.ours) for name in own):
            what = f"{layout.name}; {layout.note}" if layout.note else layout.name
            return what, _fitted(layout, _converted(layout, weights), own)
    return None


def _is_own(weights: Collection[str]) -> bool:
    return any(name.startswith(("proposal_generator.", "streams.")) for name in weights)


def _converted(layout: _Layout, weights: Mapping) -> dict:
    result = {}
    unknown = []
    for name, value in weights.items():
        if re.match(layout.left_out, name):
            continue
        ours = _renamed(layout, name)
        if ours is None:
            unknown.append(name)
            continue
        value = torch.as_tensor(value)
        for start, change in layout.change.items():
            if ours.startswith(start):
                try:
                    value = change(value)
                except ValueError as error:
                    raise ValueError(f"it is {layout.name}, but of {name}: {error}") from None
        result[ours] = value
    if unknown:
        raise ValueError(
            f"it looks like {layout.name}, but {len(unknown)} of its tensors are not known of one, "
            f"the first is {unknown[0]}"
        )
    return result


def _fitted(layout: _Layout, weights: dict, own: Mapping[str, Tensor]) -> dict:
    """With the biases that the file need not have, and the classes of the model."""
    if layout.without_bias:
        for name, x in own.items():
            if name.endswith(".bias") and f"{name[:-4]}weight" in weights:
                weights.setdefault(name, torch.zeros_like(x))
    for start, in_use in layout.coco_ids.items():
        for name in [name for name in weights if name.startswith(start) and name in own]:
            fitting = in_use(weights[name])
            if len(fitting) == len(own[name]):
                weights[name] = fitting
    return weights


def _renamed(layout: _Layout, name: str) -> str | None:
    for pattern, ours in layout.names:
        found = re.match(pattern, name)
        if found is not None:
            return ours.format(*(_Number(x) for x in found.groups())) + name[found.end() :]
    return None
