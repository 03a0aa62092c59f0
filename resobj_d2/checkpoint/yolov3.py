"""Darknet's files in this package: the whole YOLOv3, or the DarkNet of any detector."""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from resobj_d2.modeling import DarkNet, PerLevelConv, YOLOPyramid, YOLOTower
from resobj_d2.modeling.backbones.darknet import DarkNetConv
from resobj_d2.process import counted

from .darknet_file import Convolution, DarknetWeightsError, load_darknet_weights

__all__ = ["is_darknet_file", "read_darknet_state"]

logger = logging.getLogger(__name__)


def is_darknet_file(path: str) -> bool:
    """Whether a name is like ``yolov3.weights`` or ``darknet53.conv.74``."""
    return re.search(r"\.weights$|\.conv\.\d+$", path) is not None


def read_darknet_state(path: str, model: nn.Module) -> dict[str, Tensor]:
    """What a Darknet file holds for a detector, by the names of its ``state_dict``.

    A file as long as the model's DarkNet is read as that (``darknet53.conv.74``), any other as a
    whole YOLOv3. Of one with another number of classes the predictors are left out, and for a model
    that is no YOLOv3 all but the DarkNet. What Darknet does not have, the residual subnets of
    YOLOv3-ResObj, is left out.

    Raises:
        DarknetWeightsError: the model has no DarkNet, or the file fits neither; the message says
            which layer it ends in, and where.
    """
    where = os.path.abspath(path)
    model = getattr(model, "module", model)
    backbone = _darknet_layers(model)
    if not backbone:
        raise DarknetWeightsError(f"{where} is Darknet's, but the model has no DarkNet to load it")
    numbers = sum(x.numel() for layer in backbone for x in layer.state().values())
    size = os.path.getsize(path)
    left_out = ""
    if size - 4 * numbers in (16, 20):  # the sizes of a header
        layers = backbone
    elif (whole := _yolo_layers(model, backbone)) is not None:
        layers = whole
        classes = _number_of_classes(size, whole)
        own = whole[-1].num_classes
        if classes not in (None, own):
            left_out = (
                f"its predictors are of {counted(classes, 'class')}, not {own}, and are left out"
            )
            layers = [x.of_classes(classes) for x in whole]
    else:
        layers = backbone
        classes = _number_of_classes(size, [*backbone, *_usual_rest(backbone)])
        if classes is None:
            raise DarknetWeightsError(
                f"{where} has {size} bytes; the model's DarkNet needs {4 * numbers + 20}, and the "
                "rest of the model is no YOLOv3"
            )
        left_out = f"it is a YOLOv3 of {counted(classes, 'class')}, of which the DarkNet is taken"
    _warn_of_other_pixels(model, where)
    try:
        seen = load_darknet_weights(
            path, [layer.convolution for layer in layers], and_more=layers is backbone
        )
    except DarknetWeightsError as error:
        raise DarknetWeightsError(
            f"{error}. A file of its DarkNet alone would have {4 * numbers + 20} bytes"
        ) from None
    logger.info("%s: %d convolutions, trained on %d images", where, len(layers), seen)
    if left_out:
        logger.warning("%s: %s", where, left_out)
    state: dict[str, Tensor] = {}
    for layer in layers:
        if not (left_out and isinstance(layer, _PredictorLayer)):
            state.update(layer.state())
    return state


@dataclass
class _NormalisedLayer:
    """A copy of a convolution and its batch normalisation, called ``name`` in the model."""

    name: str
    conv: nn.Conv2d
    norm: nn.Module

    @property
    def convolution(self) -> Convolution:
        return self.name, self.conv, self.norm

    @property
    def numbers(self) -> int:
        """How many of the file are its own."""
        return self.conv.weight.numel() + 4 * self.conv.out_channels

    def of_classes(self, number: int) -> _NormalisedLayer:
        return self

    def state(self) -> dict[str, Tensor]:
        weights = {f"{self.name}.conv.weight": self.conv.weight.detach()}
        for key in ("weight", "bias", "running_mean", "running_var"):
            weights[f"{self.name}.norm.{key}"] = getattr(self.norm, key).detach()
        return weights


@dataclass
class _PredictorLayer:
    """Darknet's one predictor of a scale, and the names of those that share its channels here.

    For each anchor in turn it has the box (x, y, w, h), the objectness and the classes.
    """

    names: tuple[str, str, str]  # box, objectness, class
    conv: nn.Conv2d
    num_anchors: int

    @property
    def convolution(self) -> Convolution:
        return self.names[0], self.conv, None

    @property
    def num_classes(self) -> int:
        """K."""
        return self.conv.out_channels // self.num_anchors - 5

    def of_classes(self, number: int) -> _PredictorLayer:
        """The same for another number of classes."""
        conv = nn.Conv2d(self.conv.in_channels, self.num_anchors * (5 + number), 1)
        return replace(self, conv=conv)

    def state(self) -> dict[str, Tensor]:
        weights = {}
        for key in ("weight", "bias"):
            tensor = getattr(self.conv, key).detach()
            per_anchor = tensor.unflatten(0, (self.num_anchors, -1))
            parts = per_anchor[:, :4], per_anchor[:, 4:5], per_anchor[:, 5:]
            for name, part in zip(self.names, parts, strict=True):
                weights[f"{name}.{key}"] = part.flatten(0, 1)
        return weights


def _copies(module: nn.Module, prefix: str) -> list[_NormalisedLayer]:
    """Copies of all convolutions of a part of the model, which the file shall fill."""
    return [
        _NormalisedLayer(
            name=".".join(filter(None, (prefix, name))),
            conv=copy.deepcopy(part.conv),
            norm=copy.deepcopy(part.norm),
        )
        for name, part in module.named_modules()
        if isinstance(part, DarkNetConv)
    ]


def _darknet_layers(model: nn.Module) -> list[_NormalisedLayer]:
    """Those of the model's DarkNet in the file's order; none without one."""
    for name, module in model.named_modules():
        if isinstance(module, DarkNet):
            return _copies(module, name)
    return []


def _yolo_layers(
    model: nn.Module, backbone: list[_NormalisedLayer]
) -> list[_NormalisedLayer | _PredictorLayer] | None:
    """All of YOLOv3 in the file's order, coarsest scale first; None for another detector."""
    pyramid, tower = getattr(model, "backbone", None), getattr(model, "tower", None)
    if not isinstance(pyramid, YOLOPyramid) or not isinstance(tower, YOLOTower):
        return None
    names = (
        "streams.anchors.stages.0.box",
        "streams.anchors.branches.objectness.base.predictor",
        "streams.anchors.stages.0.cls",
    )
    modules = dict(model.named_modules())
    predictors = [modules.get(name) for name in names]
    usual = all(
        isinstance(p, PerLevelConv) and [x.in_channels for x in p.levels] == tower.out_channels
        for p in predictors
    )
    if not usual or any(x.kernel_size != (1, 1) for p in predictors for x in p.levels):
        return None
    layers: list[_NormalisedLayer | _PredictorLayer] = list(backbone)
    for i in reversed(range(len(pyramid.scales))):
        if i < len(pyramid.reduce):
            layers += _copies(pyramid.reduce[i], f"backbone.reduce.{i}")
        layers += _copies(pyramid.scales[i], f"backbone.scales.{i}")
        layers += _copies(tower.convs.levels[i], f"tower.convs.levels.{i}")
        parts = [p.levels[i] for p in predictors]
        layers.append(
            _PredictorLayer(
                names=tuple(f"{name}.levels.{i}" for name in names),
                conv=nn.Conv2d(parts[0].in_channels, sum(x.out_channels for x in parts), 1),
                num_anchors=parts[1].out_channels,
            )
        )
    return layers


def _number_of_classes(
    size: int, layers: Sequence[_NormalisedLayer | _PredictorLayer]
) -> int | None:
    """With which a file of ``size`` bytes has these layers and no more; None if there is none."""
    predictors = [x for x in layers if isinstance(x, _PredictorLayer)]
    fixed = sum(x.numbers for x in layers if isinstance(x, _NormalisedLayer))
    per_class = sum(x.num_anchors * (x.conv.in_channels + 1) for x in predictors)
    for header in (20, 16):
        classes, remainder = divmod(size - header - 4 * fixed, 4 * per_class)
        if not remainder and classes > 5:
            return classes - 5
    return None


def _usual_rest(
    backbone: Sequence[_NormalisedLayer],
) -> Iterator[_NormalisedLayer | _PredictorLayer]:
    """The layers of ``yolov3.cfg`` behind a DarkNet, of one class, for their sizes alone."""
    channels = sorted({x.conv.out_channels for x in backbone})[-3:]

    def layer(before: int, after: int, kernel: int) -> _NormalisedLayer:
        conv = nn.Conv2d(before, after, kernel, bias=False, device="meta")
        return _NormalisedLayer(name="", conv=conv, norm=nn.Identity())

    before, coarser = channels[-1], 0
    for width in (x // 2 for x in reversed(channels)):
        if coarser:  # the coarser scale, reduced, beside the map of the DarkNet
            yield layer(coarser, width, 1)
            before = width + 2 * width
        for _ in range(3):
            yield layer(before, width, 1)
            yield layer(width, 2 * width, 3)
            before = 2 * width
        predictor = nn.Conv2d(2 * width, 3 * 6, 1, device="meta")
        yield _PredictorLayer(names=("", "", ""), conv=predictor, num_anchors=3)
        coarser = width


def _warn_of_other_pixels(model: nn.Module, where: str) -> None:
    mean, std = getattr(model, "pixel_mean", None), getattr(model, "pixel_std", None)
    if mean is not None and not (torch.all(mean == 0) and torch.all(std == 255)):
        logger.warning(
            "%s: Darknet's networks read RGB from 0 to 1, i.e. INPUT.FORMAT RGB, MODEL.PIXEL_MEAN "
            "[0, 0, 0] and PIXEL_STD [255, 255, 255]; here the mean is %s and the deviation %s",
            where,
            mean.flatten().tolist(),
            std.flatten().tolist(),
        )
