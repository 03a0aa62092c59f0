"""Any convolutional network of ``timm`` as a Detectron2 backbone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Annotated

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from resobj_d2.options import Option, arguments_from

from .same_padding import replace_same_convolutions
from .timm_weights import find_weights, load_timm_weights

__all__ = ["TimmBackbone", "build_timm_backbone", "without_imagenet_weights"]

logger = logging.getLogger(__name__)


class TimmBackbone(Backbone):
    """The feature maps of a timm model, named ``c1``, ``c2``, ... by log2 of their stride.

    Args:
        name: a model of ``timm.list_models()`` that supports ``features_only``.
        strides: strides of the maps to return, ascending.
        drop_path_rate: of stochastic depth.
        bn_momentum: of the batch normalisation; 0 keeps the model's own.
        pretrained: let timm download its ImageNet weights.
        weights: a file of weights for the model, or ``package:NAME`` for that of an installed
            package (:mod:`.timm_weights`); "" for random ones.
        freeze_at: layers up to the map of this stride keep their weights and are not trained; 0
            for none.
        freeze_norm: all batch normalisation uses the statistics that were loaded, also in training,
            and its scales and shifts are not trained. Frozen layers do so in any case.

    Raises:
        ImportError: timm, or the package of the weights, is not installed.
        ValueError: timm has no such model, the model has no map with one of the strides, or the
            weights are of another one, or there is no such stride to freeze at.
        CheckpointError: the file of weights cannot be read.
    """

    def __init__(
        self,
        *,
        name: Annotated[str, Option("a model of timm.list_models(); needs the package timm")] = (
            "tf_efficientnet_b0"
        ),
        strides: Annotated[
            Sequence[int], Option("strides of the maps, called c3 (stride 8), c4, ...")
        ] = (8, 16, 32),
        drop_path_rate: Annotated[float, Option("rate of stochastic depth")] = 0.0,
        bn_momentum: Annotated[
            float,
            Option("momentum of its batch normalisation (torch's convention); 0 keeps the model's"),
        ] = 0.0,
        pretrained: Annotated[
            bool,
            Option("let timm download ImageNet weights, unless MODEL.WEIGHTS names a checkpoint"),
        ] = False,
        weights: Annotated[
            str,
            Option(
                "ImageNet weights from a file, or from the installed package in package:NAME, "
                "unless MODEL.WEIGHTS names a checkpoint"
            ),
        ] = "",
        freeze_at: Annotated[
            int,
            Option("layers up to the map of this stride are not trained, 32 for all; 0 for none"),
        ] = 0,
        freeze_norm: Annotated[
            bool, Option("batch normalisation keeps its weights and statistics")
        ] = False,
    ) -> None:
        super().__init__()
        if pretrained and weights:
            raise ValueError("MODEL.TIMM.PRETRAINED and MODEL.TIMM.WEIGHTS exclude each other")
        try:
            import timm
        except ImportError as error:
            raise ImportError(
                "this backbone needs timm: pip install timm (or the extra 'efficientdet')"
            ) from error
        if not timm.is_model(name):
            raise ValueError(f"timm {timm.__version__} has no model {name!r} (MODEL.TIMM.NAME)")
        available = timm.create_model(name, features_only=True).feature_info.reduction()
        missing = [stride for stride in strides if stride not in available]
        if missing or not strides:
            raise ValueError(
                f"MODEL.TIMM.STRIDES must be some of {available} for {name}, got {list(strides)}"
            )
        # Stages beyond the last requested one are not built.
        self.model = timm.create_model(
            name,
            features_only=True,
            out_indices=[available.index(stride) for stride in strides],
            drop_path_rate=drop_path_rate,
            pretrained=pretrained,
        )
        replace_same_convolutions(self.model)
        if weights:
            load_timm_weights(self.model, name, find_weights(weights))
        _set_momentum(self.model, bn_momentum)
        self._frozen = _layers_up_to(self.model, name, freeze_at) if freeze_at else []
        if freeze_norm:
            self._frozen += [x for x in self.model.modules() if isinstance(x, nn.BatchNorm2d)]
        for layer in self._frozen:
            layer.requires_grad_(False)
        self._shapes = {
            f"c{stride.bit_length() - 1}": ShapeSpec(channels=channels, stride=stride)
            for stride, channels in zip(strides, self.model.feature_info.channels(), strict=True)
        }

    @property
    def size_divisibility(self) -> int:
        return max(spec.stride for spec in self._shapes.values())

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self._shapes)

    def train(self, mode: bool = True) -> TimmBackbone:
        """Frozen layers behave as at inference in any mode."""
        super().train(mode)
        for layer in self._frozen:
            layer.eval()
        return self

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """image: (N, 3, H, W)."""
        return dict(zip(self._shapes, self.model(image), strict=True))


def _layers_up_to(model: nn.Module, name: str, stride: int) -> list[nn.Module]:
    """What the map of a stride is made by; timm's networks have their layers in order."""
    ends = {entry["reduction"]: entry["module"] for entry in model.feature_info.info}
    end = ends.get(stride, "")
    paths = [path for path, _ in model.named_modules()]
    if end not in paths:
        end = end.replace(".", "_", 1)  # features_only joins the first two parts of some names
    if end not in paths or not end:
        raise ValueError(
            f"MODEL.TIMM.FREEZE_AT must be 0 or a stride of {name}, of {list(ends)}, got {stride}"
        )
    before = paths[: paths.index(end) + 1]
    around = {end[:i] for i, letter in enumerate(end) if letter == "."} | {""}
    return [model.get_submodule(path) for path in before if path not in around]


def _set_momentum(model: nn.Module, momentum: float) -> None:
    if not 0 <= momentum <= 1:
        raise ValueError(f"MODEL.TIMM.BN_MOMENTUM must be in [0, 1], got {momentum}")
    for layer in model.modules():
        if momentum and isinstance(layer, nn.BatchNorm2d):
            layer.momentum = momentum


def _warn_of_other_pixels(cfg, backbone: TimmBackbone) -> None:
    """Where images are not normalised as for the ImageNet weights."""
    trained = backbone.model.pretrained_cfg
    mean, std = ([255 * float(x) for x in trained[key]] for key in ("mean", "std"))
    if cfg.INPUT.FORMAT == "BGR":
        mean, std = mean[::-1], std[::-1]
    for key, value in (("PIXEL_MEAN", mean), ("PIXEL_STD", std)):
        if not all(abs(a - b) <= 1 for a, b in zip(cfg.MODEL[key], value, strict=True)):
            logger.warning(
                "MODEL.%s %s is not what the weights of %s were trained with: %s, for %s images",
                *(key, list(cfg.MODEL[key]), cfg.MODEL.TIMM.NAME),
                *([round(x, 1) for x in value], cfg.INPUT.FORMAT),
            )


def without_imagenet_weights(cfg: CfgNode) -> CfgNode:
    """A copy for a network of which only shapes matter: nothing is downloaded or looked up."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.TIMM.PRETRAINED = False
    cfg.MODEL.TIMM.WEIGHTS = ""
    return cfg


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg, input_shape: ShapeSpec) -> TimmBackbone:
    """The model named by ``MODEL.TIMM``."""
    arguments = arguments_from(TimmBackbone, cfg.MODEL.TIMM)
    if cfg.MODEL.WEIGHTS:
        arguments.update(pretrained=False, weights="")
    backbone = TimmBackbone(**arguments)
    if arguments["pretrained"] or arguments["weights"]:
        _warn_of_other_pixels(cfg, backbone)
    return backbone
