"""The configuration: this package's keys, and the way from a command line to a checked config."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .defaults import add_resobj_config
    from .load import class_counts, load_config
    from .zoo import get_config

__all__ = ["add_resobj_config", "class_counts", "get_config", "load_config"]

# Imported on use: a list of the zoo needs neither torch nor Detectron2.
_MODULES = {
    "add_resobj_config": "defaults",
    "class_counts": "load",
    "get_config": "zoo",
    "load_config": "load",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
