"""Files that are either the old or the new one, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import IO

__all__ = ["put_in_place", "replacing", "told_as"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def replacing(path: str | os.PathLike, *, binary: bool = False) -> Iterator[IO]:
    """A file to write that takes the place of ``path`` when the block has ended well.

    It is written beside ``path``, reaches the disk, and is renamed. Where the block or the
    process fails, ``path`` keeps its old content. The permissions of an old file stay, and where
    ``path`` is a link, the file behind it is replaced. One process at a time may write a path.

    Args:
        path: of the file; its folder must be there. A device or pipe, as ``/dev/stdout``, is
            written as it is.
        binary: open for bytes; text is UTF-8.

    Raises:
        OSError: it cannot be written; the message names ``path``.
    """
    path = os.fspath(path)
    mode, encoding = ("wb", None) if binary else ("w", "utf-8")
    if _is_stream(path):
        with open(path, mode, encoding=encoding) as file:
            yield file
        return
    # One name, so that the leftover of a killed process is reused.
    temporary = f"{os.path.realpath(path)}.tmp"
    with told_as(path, temporary):
        try:
            with open(temporary, mode, encoding=encoding) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            put_in_place(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


@contextlib.contextmanager
def told_as(path: str | os.PathLike, temporary: str | os.PathLike) -> Iterator[None]:
    """Errors about a temporary file, or none as of a full disk, are told as those of ``path``."""
    try:
        yield
    except OSError as error:
        full = error.filename is None and error.errno in _FULL
        if full or error.filename in (temporary, os.fspath(temporary)):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


def put_in_place(written: str | os.PathLike, path: str | os.PathLike) -> None:
    """Rename a file that has reached the disk to ``path``, in one step.

    Args:
        written: beside the file that ``path`` is or links to.
    """
    target = os.path.realpath(path)
    with contextlib.suppress(OSError):  # there is no old file, or it is another user's
        os.chmod(written, stat.S_IMODE(os.stat(target).st_mode))
    os.replace(written, target)
    _sync_folder(os.path.dirname(target))


def _is_stream(path: str) -> bool:
    """Whether it is a device, a pipe, or this process's output, which may itself be a file."""
    if os.path.dirname(os.path.abspath(path)) in ("/dev", "/dev/fd", "/proc/self/fd"):
        return True
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _sync_folder(folder: str) -> None:
    """Let the renaming reach the disk too, on systems where a folder can be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
