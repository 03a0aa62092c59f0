"""Files that are either the old or the new one, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import IO

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(path: str | os.PathLike, *, binary: bool = False) -> Iterator[IO]:
    """A file to write that takes the place of ``path`` when the block has ended well.

    It is written beside ``path``, reaches the disk, and is renamed. Where the block or the
    process fails, ``path`` keeps its old content. One process at a time may write a path.

    Args:
        path: of the file; its folder must be there.
        binary: open for bytes; text is UTF-8.
    """
    path = os.fspath(path)
    temporary = f"{path}.tmp"  # one name, so that the leftover of a killed process is reused
    try:
        with open(temporary, "wb" if binary else "w", encoding=None if binary else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(os.path.dirname(os.path.abspath(path)))


def _sync_folder(folder: str) -> None:
    """Let the renaming reach the disk too, on systems where a folder can be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
