"""Detectors of torchvision, mmdetection and ssd.pytorch under the names of this package's.

Anchors of a cell are numbered ratio by ratio in RetinaNets of others, size by size here; class 0 of
torchvision is the background.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["KNOWN_LAYOUTS", "convert_other_toolkit"]

KNOWN_LAYOUTS = (
    "this package's and Detectron2's own",
    "RetinaNet of torchvision and mmdetection",
    "Faster R-CNN (FPN) of torchvision",
    "the VGG16 of ssd.pytorch and of torchvision",
    "Darknet's files",
)
"""What :class:`.ResObjCheckpointer` can load."""

_CLS, _BOX = "streams.anchors.stages.0.cls.", "streams.anchors.stages.0.box."
_RPN, _ROI = "proposal_generator.rpn_head.", "roi_heads.box_head."

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
    """

    name: str
    mark: str
    ours: str
    names: tuple[tuple[str, str], ...]
    change: Mapping[str, Callable[[Tensor], Tensor]]
    left_out: str = r".*\.num_batches_tracked"


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


def convert_other_toolkit(weights: Mapping, own: Collection[str]) -> tuple[str, dict] | None:
    """Weights under the names that they have here.

    Args:
        weights: of another toolkit, by their names there.
        own: names of the model that shall take them.

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
            return layout.name, _converted(layout, weights)
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


def _renamed(layout: _Layout, name: str) -> str | None:
    for pattern, ours in layout.names:
        found = re.match(pattern, name)
        if found is not None:
            return ours.format(*(_Number(x) for x in found.groups())) + name[found.end() :]
    return None
