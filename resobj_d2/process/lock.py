"""One run at a time in a folder: two would overwrite each other's checkpoints and logs."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import time
from typing import IO

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderInUse", "hold_folder", "release_folder"]

logger = logging.getLogger(__name__)

FILE = "run.lock"
_held: dict[str, tuple[int, IO]] = {}  # by path, with the process that holds it


class FolderInUse(RuntimeError):
    """Another run writes to the folder."""


def hold_folder(folder: str | os.PathLike) -> None:
    """Keep other processes out of a folder until :func:`release_folder` or the process's end.

    ``run.lock`` in the folder says who holds it: host, process and since when. The lock itself is
    the operating system's, which frees it when the process ends, in whatever way: one that was
    killed leaves the file, and the next run takes it over. Over NFS it holds between hosts as well.
    A file system without locks keeps nobody out, which is logged.

    Args:
        folder: it must be there. A second call of the process changes nothing.

    Raises:
        FolderInUse: another process holds it; the message says which.
    """
    path = os.path.join(os.path.realpath(folder), FILE)
    if fcntl is None or path in _held and _held[path][0] == os.getpid():
        return
    file = _open_locked(path)
    if file is None:
        return
    former = _read(file)
    if former:
        logger.warning(
            "%s is taken over: its run (%s) has ended without releasing it%s",
            path,
            former,
            "" if f"host {socket.gethostname()}," in former else ", unless that host still runs it",
        )
    file.seek(0)
    file.truncate()
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(f"host {socket.gethostname()}, process {os.getpid()}, since {since}\n")
    file.flush()
    _held[path] = os.getpid(), file


def _open_locked(path: str) -> IO | None:
    """None where the file system has no locks."""
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (it stays open)
        try:
            # Not flock, which data loaders would inherit and keep when their parent is killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = _read(file)
            file.close()
            raise FolderInUse(
                f"{os.path.dirname(path)} is in use by another run ({holder or 'it does not say'})"
                ": stop that one, or set another OUTPUT_DIR"
            ) from None
        except OSError as error:
            logger.warning("%s: no lock, so other runs are not kept out: %s", path, error)
            file.close()
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # its holder has removed the file meanwhile


def release_folder(folder: str | os.PathLike) -> None:
    """Let other runs in; nothing where this process does not hold the folder."""
    _release(os.path.join(os.path.realpath(folder), FILE))


def _release(path: str) -> None:
    pid, file = _held.pop(path, (0, None))
    if file is None or pid != os.getpid():  # a forked process has its parent's dict
        return
    with contextlib.suppress(OSError):
        os.unlink(path)
    file.close()


@atexit.register
def _release_all() -> None:
    for path in list(_held):
        _release(path)


def _read(file: IO) -> str:
    file.seek(0)
    return file.read().strip()
