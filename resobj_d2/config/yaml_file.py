"""Configuration files are data: read without running anything, within limits, merged by ``_BASE_``.

Detectron2's own reader allows tags that run code (``!!python/...``), follows ``_BASE_`` in circles
and into the network, and lets a few lines of aliases grow until the memory is full.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from resobj_d2.process.yaml_text import YamlError, parse_yaml

__all__ = ["ConfigFileError", "load_yaml_with_base"]

MAX_BYTES = 2**17
MAX_FILES = 100  # that one configuration is made of
BASE = "_BASE_"


class ConfigFileError(ValueError):
    """A configuration file that cannot be used, and why."""


def load_yaml_with_base(filename: str | os.PathLike) -> dict:
    """A yaml merged into those of its ``_BASE_``, as Detectron2 does.

    ``_BASE_`` is a file or a list of files, of which later ones win: paths relative to the file
    that names them, absolute ones, ``~``, and ``resobj_d2://NAME``.

    Raises:
        FileNotFoundError: a file does not exist.
        ConfigFileError: a file is not a configuration, is larger than one can be, or has a tag that
            would run code; the files form a circle, or are too many.
    """
    return _load(os.fspath(filename), (), iter(range(MAX_FILES)))


def _load(path: str, chain: tuple[str, ...], budget: Iterator[int]) -> dict:
    real = os.path.realpath(path)
    if real in chain:
        raise ConfigFileError(f"{path}: its {BASE} leads back to itself")
    if next(budget, None) is None:
        raise ConfigFileError(f"{chain[0]}: its {BASE} leads to more than {MAX_FILES} files")
    content = _read(path)
    bases = content.pop(BASE, [])
    bases = bases if isinstance(bases, list) else [bases]
    merged: dict = {}
    for base in bases:
        _merge(_load(_find_base(base, path), (*chain, real), budget), merged, path)
    _merge(content, merged, path)
    return merged


def _find_base(base: object, path: str) -> str:
    from .zoo import SCHEME, find_config

    if not isinstance(base, str):
        raise ConfigFileError(f"{path}: {BASE} must name files, got {base!r:.80}")
    if base.startswith(SCHEME):
        return str(find_config(base))
    if "://" in base:
        raise ConfigFileError(f"{path}: {BASE} {base} is not on this machine: download it first")
    found = os.path.join(os.path.dirname(path), os.path.expanduser(base))
    if not os.path.isfile(found):
        raise FileNotFoundError(f"{path}: its {BASE} is not there: {os.path.abspath(found)}")
    return found


def _merge(new: dict, into: dict, path: str, prefix: str = "") -> None:
    for key, value in new.items():
        if isinstance(value, dict) and key in into:
            if not isinstance(into[key], dict):
                raise ConfigFileError(f"{path}: {prefix}{key} is a value in its {BASE}, not a node")
            _merge(value, into[key], path, f"{prefix}{key}.")
        else:
            into[key] = value


def _read(path: str) -> dict:
    """One file, without its bases."""
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe has no end
        raise ConfigFileError(f"{path} is not a configuration: it is not a file")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            size = f"{os.path.getsize(path):,} bytes, more than the {MAX_BYTES:,} of any"
            raise ConfigFileError(f"{path} is not a configuration: it has {size}")
        content = parse_yaml(data.decode("utf-8-sig"), path)
    except UnicodeDecodeError:
        raise ConfigFileError(f"{path} is not a configuration: it is not UTF-8 text") from None
    except YamlError as error:
        raise ConfigFileError(str(error)) from error
    if content is None:
        raise ConfigFileError(f"{path} is empty")
    if not isinstance(content, dict):
        raise ConfigFileError(
            f"{path} is not a configuration: it holds a {type(content).__name__}, not KEY: VALUE"
        )
    _check_keys(content, path)
    return content


def _check_keys(content: dict, path: str) -> None:
    """Names of nodes and keys are strings; dicts inside of lists are values."""
    for key, value in content.items():
        if not isinstance(key, str):
            raise ConfigFileError(f"{path}: {key!r:.40} stands where the name of a key belongs")
        if isinstance(value, dict):
            _check_keys(value, path)
