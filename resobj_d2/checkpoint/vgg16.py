"""torchvision's VGG16 checkpoints for SSD's VGG16 and for R-CNNs on VGG16."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["convert_vgg16", "is_vgg16_rcnn", "rename_vgg16_for_rcnn", "vgg16_prefix"]

LAST_CONVOLUTION = "features.28.weight"
_SHAPES = {
    LAST_CONVOLUTION: (512, 512, 3, 3),
    "classifier.0.weight": (4096, 25088),
    "classifier.3.weight": (4096, 4096),
}


def vgg16_prefix(names: Iterable[str]) -> str | None:
    """What stands in front of the names of an ``SSDVGG16`` among a model's parameters, or None."""
    names = set(names)
    for name in names:
        prefix = name.removesuffix(LAST_CONVOLUTION)
        if prefix != name and f"{prefix}fc.0.weight" in names:
            return prefix
    return None


def is_vgg16_rcnn(names: Iterable[str]) -> bool:
    """Whether parameters of these names are those of an R-CNN on ``VGG16``."""
    names = set(names)
    return f"backbone.{LAST_CONVOLUTION}" in names and "backbone.fc.0.weight" not in names


def rename_vgg16_for_rcnn(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's VGG16 to an R-CNN on ``VGG16``: fc6 and fc7 become the box head's two layers.

    Raises:
        ValueError: as :func:`convert_vgg16`.
    """
    _check_shapes(weights)
    renamed = {
        "features.": "backbone.features.",
        "classifier.0.": "roi_heads.box_head.fc1.",
        "classifier.3.": "roi_heads.box_head.fc2.",
    }
    return {
        new + name.removeprefix(old): value
        for name, value in weights.items()
        for old, new in renamed.items()
        if name.startswith(old)
    }


def _check_shapes(weights: Mapping[str, Tensor]) -> None:
    for name, shape in _SHAPES.items():
        if name in weights and tuple(weights[name].shape) != shape:
            raise ValueError(
                f"{name} has the shape {tuple(weights[name].shape)}, in VGG16 it has {shape}"
            )


def convert_vgg16(weights: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """torchvision's VGG16 to ``SSDVGG16``: other names, and convolutions for fc6 and fc7.

    As in Liu et al. 2016, "SSD", section 3: of fc6, a 7x7 convolution of 4096 outputs, every third
    row and column and every fourth output are kept, of fc7 every fourth input and output.

    Args:
        weights: ``features.*`` and perhaps ``classifier.*``, without which fc6 and fc7 are missing.
        prefix: of the names in the model.

    Raises:
        ValueError: the shapes are not those of VGG16 (but of another VGG).
    """
    _check_shapes(weights)
    converted = {
        prefix + name: value for name, value in weights.items() if name.startswith("features.")
    }
    if "classifier.0.weight" in weights:
        fc6, bias6, fc7, bias7 = (
            torch.as_tensor(weights[f"classifier.{layer}.{kind}"])
            for layer in (0, 3)
            for kind in ("weight", "bias")
        )
        converted[f"{prefix}fc.0.weight"] = fc6.view(4096, 512, 7, 7)[::4, :, ::3, ::3].contiguous()
        converted[f"{prefix}fc.0.bias"] = bias6[::4].contiguous()
        converted[f"{prefix}fc.2.weight"] = fc7[::4, ::4, None, None].contiguous()
        converted[f"{prefix}fc.2.bias"] = bias7[::4].contiguous()
    return converted
