"""Residual Objectness and related methods, as an extension of Detectron2.

``import resobj_d2`` imports nothing else, and ``import resobj_d2.ops`` needs only torch. All other
names are imported on first use and need Detectron2; see ``docs/python.md``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .acceleration import accelerate, restore
    from .config import add_resobj_config, get_config, load_config
    from .engine import Trainer, evaluate
    from .inference.detector import build_detector
    from .inference.predictor import Predictor

__version__ = "0.2.0"

__all__ = [
    "Predictor",
    "Trainer",
    "accelerate",
    "add_resobj_config",
    "build_detector",
    "evaluate",
    "get_config",
    "load_config",
    "restore",
]

_MODULES = {
    "Predictor": "inference.predictor",
    "Trainer": "engine",
    "accelerate": "acceleration",
    "add_resobj_config": "config",
    "build_detector": "inference.detector",
    "evaluate": "engine",
    "get_config": "config",
    "load_config": "config",
    "restore": "acceleration",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .process import quiet

    with quiet():  # of what Detectron2 and torch say about each other when they are imported
        module = importlib.import_module(f".{_MODULES[name]}", __name__)
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
