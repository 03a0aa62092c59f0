"""Values of keys: of the type of their default, or one line that says what to write."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode

from resobj_d2.process.yaml_text import parse_yaml

__all__ = ["fitted_file", "fitted_overrides"]

_MOST_SHOWN = 80  # characters of a value
_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
}
# Of what a list that holds no names is made.
_EXAMPLES = {
    "DATASETS.REGISTER": [{"name": "my_train", "json": "train.json", "images": "photos"}],
}


def fitted_file(raw: Mapping, cfg: CfgNode, source: str, prefix: str = "") -> dict:
    """The content of a yaml with values of the types that ``cfg`` has; yacs compares them.

    Keys that ``cfg`` has not are left as they are.

    Raises:
        ValueError: a node is none, or a key has no value, or one of another kind.
    """
    fitted: dict = {}
    for key, value in raw.items():
        default = cfg.get(key)
        path = prefix + key
        if isinstance(default, CfgNode) and isinstance(value, Mapping):
            fitted[key] = fitted_file(value, default, source, f"{path}.")
        elif key not in cfg:
            fitted[key] = value  # explained when it is merged
        elif value is None and default is not None:
            raise ValueError(f"{source}: {path} has no value")
        else:
            fitted[key] = _fitted(value, default, f"{source}: {path}", path)
    return fitted


def fitted_overrides(opts: Sequence, cfg: CfgNode) -> list:
    """Alternating keys and values, as :func:`fitted_file`."""
    fitted: list = []
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        node, _, name = str(key).rpartition(".")
        parent: Any = cfg
        for part in filter(None, node.split(".")):
            parent = parent.get(part) if isinstance(parent, CfgNode) else None
        if isinstance(parent, CfgNode) and name in parent:
            value = _fitted(value, parent[name], str(key), str(key))
        fitted += [key, value]
    return fitted


def _fitted(value: Any, default: Any, where: str, key: str) -> Any:
    """One value, given as it is or in Python's or yaml's spelling, in the type of the default."""
    given, value = value, CfgNode._decode_cfg_value(value)
    if isinstance(default, CfgNode):
        raise ValueError(f"{where} is a node with keys of its own, got {_shown(given)}")
    if value is None or default is None or type(value) is type(default):
        # yacs evaluates a string once more: one that stands for itself stays as it was given.
        return given if isinstance(value, str) else value
    if isinstance(default, float) and type(value) is int:
        return _as_float(value, where)
    if isinstance(default, (list, tuple)):
        return _as_list(value, default, where, key)
    if isinstance(default, str) and isinstance(value, os.PathLike):
        return os.fspath(value)
    hint = ""
    if isinstance(default, str) and isinstance(value, (bool, int, float)):
        hint = f": write \"'{given}'\""
    kind = _KINDS.get(type(default), f"a {type(default).__name__}")
    raise ValueError(f"{where} must be {kind}, got {_shown(value)}{hint}")


def _as_float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{where} must be a number that a float can hold") from None


def _as_list(value: Any, default: list | tuple, where: str, key: str) -> list | tuple:
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_yaml(value, where)
    if isinstance(value, (list, tuple)):
        return type(default)(value)
    if key in _EXAMPLES:
        form = f'as in "{_EXAMPLES[key]!r}"'
    elif isinstance(value, Mapping) or len(str(value)) > _MOST_SHOWN:
        form = "write it in brackets, [...]"
    else:
        form = f'write "{type(default)((value,))!r}"'
    raise ValueError(f"{where} must be a list, got {_shown(value)}: {form}")


def _shown(value: Any) -> str:
    text = repr(dict(value) if isinstance(value, Mapping) else value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
