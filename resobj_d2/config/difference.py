"""What a configuration sets: its values where they differ from the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectron2.config import CfgNode

__all__ = ["difference", "plain_values"]


def plain_values(cfg: CfgNode) -> dict:
    """As Detectron2 dumps it: nested dicts, with tuples as lists."""
    import yaml

    return yaml.safe_load(cfg.dump())


def difference(values: Mapping, defaults: Mapping) -> dict:
    """The part of nested ``values`` that ``defaults`` has not, or has differently."""
    found = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(defaults.get(key), Mapping):
            value = difference(value, defaults[key])
            if value:
                found[key] = value
        elif key not in defaults or value != defaults[key]:
            found[key] = value
    return found
