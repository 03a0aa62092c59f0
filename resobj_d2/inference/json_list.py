"""Json files that are written item by item and appear when they are complete."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from resobj_d2.process import put_in_place, told_as

__all__ = ["JsonLinesWriter", "JsonListWriter"]


class JsonListWriter:
    """Writes the items of a list as they come, one on a line, to ``<path>.partial``.

    At the end of the ``with`` block, also of one that an exception ends, the list is closed and
    the file renamed to ``path`` in one step: what is there under that name can always be read. Of a
    process that is killed the partial file has every item added before, and lacks the end alone.

    Args:
        path: the file.
        around: an object that holds the list under ``key``; without, the file is the list.
        key: where the list goes in ``around``.
    """

    def __init__(self, path: Path, *, around: dict | None = None, key: str = "") -> None:
        self.path = path
        self._head, self._tail = "[", "\n]\n"
        if around is not None:
            others = json.dumps(around)[1:-1]
            self._head = "{" + others + (", " if others else "") + json.dumps(key) + ": ["
            self._tail = "\n]}\n"
        self._first = True

    def __enter__(self) -> JsonListWriter:
        # Where the path is a link: beside the file that it means.
        self._partial = Path(f"{os.path.realpath(self.path)}.partial")
        with told_as(self.path, self._partial):
            self._file = open(self._partial, "w", encoding="utf-8")
        self._file.write(self._head)
        return self

    def add(self, items: Iterable[object]) -> None:
        """Append items, which reach the file before this returns."""
        for item in items:
            self._file.write(self._text(item))
        self._file.flush()

    def _text(self, item: object) -> str:
        before, self._first = "\n" if self._first else ",\n", False
        return before + json.dumps(item)

    def __exit__(self, *_) -> None:
        with self._file:
            self._file.write(self._tail)
            self._file.flush()
            os.fsync(self._file.fileno())
        put_in_place(self._partial, self.path)


class JsonLinesWriter(JsonListWriter):
    """The same for JSON lines, where every line is a document.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._head = self._tail = ""

    def _text(self, item: object) -> str:
        return json.dumps(item) + "\n"
