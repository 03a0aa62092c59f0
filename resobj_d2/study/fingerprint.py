"""What decides a run, and the key that is made of it: the same on every machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Mapping

import numpy as np

from resobj_d2.data.record import Record

__all__ = [
    "NOT_CHECKED",
    "data_checksum",
    "file_checksum",
    "has_source",
    "key_of",
    "module_checksum",
    "plain_register",
    "source_checksum",
]

# Of an entry of DATASETS.REGISTER: where the data lie does not decide, what they hold does.
_PLACES = ("json", "images", "root", "yaml", "labels", "csv", "folder")
_AT_ONCE = 1 << 20


NOT_CHECKED = "not checked"
"""In place of the checksum of data that were not read, and of weights that are not here."""


def key_of(decides: Mapping) -> str:
    """16 hexadecimal digits of everything that decides a run.

    Args:
        decides: values that json can write.
    """
    text = json.dumps(decides, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def data_checksum(record: Record) -> str:
    """A checksum of what a dataset holds: classes, images and annotations in their order.

    Paths and file names do not count. Of the pictures their sizes in pixels and in bytes do.
    """
    images, table = record.images, record.annotations
    digest = hashlib.sha256()
    for part in (
        [(c.id, c.name, c.keypoints, c.skeleton) for c in record.categories],
        images.ids,
        images.widths,
        images.heights,
        [_bytes_of(path) for path in images.files],
        *(table.ids, table.images, table.classes, table.boxes, table.areas),
        *(table.crowd, table.difficult, table.masks, table.keypoints),
    ):
        _feed(digest, part)
    return digest.hexdigest()[:16]


def _bytes_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # reported where it is read
        return -1


def _feed(digest, value: object) -> None:
    """Add a value with its kind and length, so that different values are different bytes."""
    if isinstance(value, np.ndarray):
        kind = "f8" if value.dtype.kind == "f" else "i8"
        digest.update(f"a{kind}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value, dtype=f"<{kind}").tobytes())
    elif isinstance(value, Mapping):
        _feed(digest, sorted(value.items()))
    elif isinstance(value, (list, tuple)):
        digest.update(f"l{len(value)}:".encode())
        for item in value:
            _feed(digest, item)
    else:
        value = value.decode("ascii", "replace") if isinstance(value, bytes) else value
        text = f"{type(value).__name__} {value!r}"
        digest.update(f"v{len(text)}:{text}".encode())


def file_checksum(path: str) -> str:
    """A checksum of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()[:16]


def source_checksum(name: str) -> str:
    """Of weights: the checksum of the file, the version of the package, else the name.

    Args:
        name: a path; ``package:NAME``; or an address.
    """
    if name.startswith("package:"):
        package = name.removeprefix("package:")
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            return package
    return file_checksum(name) if os.path.isfile(name) else name


def has_source(name: str) -> bool:
    """Whether :func:`source_checksum` can tell weights apart: they are here, or an address."""
    if name.startswith("package:"):
        return source_checksum(name) != name.removeprefix("package:")
    return "://" in name or os.path.isfile(name)


def module_checksum(name: str) -> str:
    """Of a module: the checksum of its file, else the name.

    Args:
        name: as ``IMPORTS`` has it, which has been imported.
    """
    if os.path.isfile(name):
        return file_checksum(name)
    if all(part.isidentifier() for part in name.split(".")):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin and os.path.isfile(spec.origin):
            return file_checksum(spec.origin)
    return name


def plain_register(entries: list[dict]) -> list[dict]:
    """``DATASETS.REGISTER`` without the places of the files."""
    return [
        {key: value for key, value in sorted(entry.items()) if key not in _PLACES}
        for entry in entries
    ]
