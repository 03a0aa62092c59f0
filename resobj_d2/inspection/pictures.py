"""Opening every picture of a dataset: damage, sizes, equal contents."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from resobj_d2.data.pictures import ImageError, read_picture
from resobj_d2.data.record import ImageTable, Record
from resobj_d2.process import progress_bar

from .findings import Finding, finding

__all__ = ["Contents", "picture_findings", "read_contents", "shared_pictures"]

T = TypeVar("T")
R = TypeVar("R")
_AHEAD = 4  # pictures for each worker that may wait to be looked at


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What was seen of the M pictures of a dataset; the pixels themselves are not kept.

    Attributes:
        widths, heights: (M,) int64 as decoded, turned upright; 0 where that failed.
        digests: (M,) 16 bytes that stand for the pixels; all zero where decoding failed.
        errors: by row, why a picture cannot be read.
    """

    widths: np.ndarray
    heights: np.ndarray
    digests: np.ndarray
    errors: dict[int, str]

    @property
    def is_read(self) -> np.ndarray:
        """(M,) bool."""
        return self.widths > 0


def read_contents(images: ImageTable, *, workers: int = 1, label: str = "pictures") -> Contents:
    """Decode every picture, as training does, and keep its size and a digest of its pixels.

    Args:
        images: the pictures; a file that is listed several times is read once.
        workers: threads; Pillow decodes and hashlib digests without Python's lock.
        label: of the progress bar.
    """
    rows: dict[str, list[int]] = {}
    for row, file in enumerate(images.files):
        rows.setdefault(file, []).append(row)
    total = len(images)
    contents = Contents(
        widths=np.zeros(total, dtype=np.int64),
        heights=np.zeros(total, dtype=np.int64),
        digests=np.zeros(total, dtype="V16"),
        errors={},
    )
    bar = progress_bar(total=len(rows), label=label, unit="img")
    for file, seen in _in_threads(_look_at, rows, workers):
        for row in rows[file]:
            if isinstance(seen, str):
                contents.errors[row] = seen
                continue
            contents.widths[row], contents.heights[row], digest = seen
            contents.digests[row] = np.void(digest)
        if bar is not None:
            bar.update()
    if bar is not None:
        bar.close()
    return contents


def _look_at(file: str) -> tuple[int, int, bytes] | str:
    """Width, height and digest of a picture, or why it cannot be read."""
    try:
        pixels = read_picture(file)
    except ImageError as error:
        return str(error).removeprefix(f"{file}: ")
    except MemoryError:
        return "it does not fit into memory"
    height, width = pixels.shape[:2]
    digest = hashlib.blake2b(f"{width}x{height}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels))
    return width, height, digest.digest()


def _in_threads(
    function: Callable[[T], R], items: Iterable[T], workers: int
) -> Iterator[tuple[T, R]]:
    """Items and results in order, a few ahead of what has been taken."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) >= max(1, workers) * _AHEAD:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:  # also when the caller stops, as at Ctrl-C
            for _, future in waiting:
                future.cancel()


def picture_findings(record: Record, contents: Contents) -> list[Finding]:
    """Pictures that cannot be read, have another size than the record says, or are there twice."""
    files = record.images.files
    unreadable = [f"{files[row]}: {why}" for row, why in sorted(contents.errors.items())]
    return [
        *finding("error", "unreadable", "pictures cannot be read", unreadable),
        *_size_findings(record.images, contents),
        *finding(
            "warning",
            "duplicate",
            "pictures repeat the pixels of another one of the set",
            _repeated(files, contents),
        ),
    ]


def _size_findings(images: ImageTable, contents: Contents) -> list[Finding]:
    width, height = images.widths, images.heights
    differs = (contents.widths != width) | (contents.heights != height)
    differs &= contents.is_read
    turned = differs & (contents.widths == height) & (contents.heights == width)
    examples = {
        which: [
            f"{images.files[row]}: {width[row]}x{height[row]} in the annotations, "
            f"{contents.widths[row]}x{contents.heights[row]} in the file"
            for row in np.flatnonzero(rows)
        ]
        for which, rows in (("turned", turned), ("other", differs & ~turned))
    }
    return [
        *finding("error", "size", "pictures have another size", examples["other"]),
        *finding(
            "error",
            "turned",
            "pictures have width and height exchanged; were they annotated without the rotation "
            "that their EXIF data ask for?",
            examples["turned"],
        ),
    ]


def _repeated(files: list[str], contents: Contents) -> list[str]:
    rows = np.flatnonzero(contents.is_read)
    _, first, group = np.unique(contents.digests[rows], return_index=True, return_inverse=True)
    originals = rows[first[group]]
    return [
        f"{files[row]} = {files[original]}"
        if files[row] != files[original]
        else f"{files[row]}, listed more than once"
        for row, original in zip(rows.tolist(), originals.tolist(), strict=True)
        if row != original
    ]


def shared_pictures(first: tuple[Record, Contents], second: tuple[Record, Contents]) -> list[str]:
    """Pictures of a dataset whose pixels another one has too, as ``file = file``."""
    (record, contents), (other, others) = first, second
    by_digest: Mapping[bytes, int] = {
        others.digests[row].tobytes(): row for row in np.flatnonzero(others.is_read)[::-1]
    }
    shared = []
    for row in np.flatnonzero(contents.is_read):
        match = by_digest.get(contents.digests[row].tobytes())
        if match is not None:
            mine, theirs = record.images.files[row], other.images.files[match]
            same = os.path.abspath(mine) == os.path.abspath(theirs)
            shared.append(mine if same else f"{mine} = {theirs}")
    return shared
