"""The log of a command: a few lines for a person on the console, everything in ``log.txt``.

The console shows what this package logs, and warnings and errors of everyone. The file has all
records of this package, Detectron2 and fvcore, and what is told through ``warnings``.
"""

from __future__ import annotations

import collections
import logging
import os
import re
import sys

__all__ = ["CONSOLE_ONLY", "FILE_ONLY", "log_to_folder", "progress_bar", "start_log"]

# logger.info(..., extra=FILE_ONLY)
FILE_ONLY = {"destination": "file"}
CONSOLE_ONLY = {"destination": "console"}

_PACKAGE = "resobj_d2"
_WARNINGS = "py.warnings"
_LOGGED = (_PACKAGE, "detectron2", "fvcore", _WARNINGS)
_LOOP = "detectron2.engine.train_loop"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_MOST_EARLY_RECORDS = 1000


class _Console(logging.Handler):
    """Prints to standard output, above a progress bar where there is one.

    Args:
        with_file: whether ``log.txt`` has what is left out here.
    """

    def __init__(self, *, with_file: bool) -> None:
        super().__init__(logging.INFO)
        self.with_file = with_file

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "destination", "console") != "console":
            return False
        if record.name == _LOOP and record.exc_info:
            return False  # the exception goes on to the command, which tells it
        return record.levelno >= logging.WARNING or _is_own(record)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            tqdm = sys.modules.get("tqdm")
            if tqdm is None:
                print(text, flush=True)
            else:
                tqdm.tqdm.write(text, file=sys.stdout)
                sys.stdout.flush()
        except Exception:
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not _is_own(record):
            text = self._shortened(text.strip(), is_list=record.name != _WARNINGS)
        if record.levelno < logging.WARNING:
            return text
        return f"{'error' if record.levelno >= logging.ERROR else 'warning'}: {text}"

    def _shortened(self, text: str, *, is_list: bool) -> str:
        """What another package says, in one line where a file has the rest or it is a list."""
        first, *others = text.splitlines() or [""]
        if not others:
            return first
        if is_list and first.endswith(":"):
            first += _few(others)
        elif not self.with_file:  # all but the line of code that Python adds to a warning
            return text if is_list else "\n".join([first, *others[:-1]])
        return f"{first} (more in log.txt)" if self.with_file else first


class _File(logging.FileHandler):
    """``log.txt`` in Detectron2's format."""

    def __init__(self, path: str) -> None:
        super().__init__(path, mode="a", encoding="utf-8")
        form = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
        self.setFormatter(logging.Formatter(form, datefmt="%m/%d %H:%M:%S"))

    def filter(self, record: logging.LogRecord) -> bool:
        return getattr(record, "destination", "file") == "file"


class _Early(logging.Handler):
    """Keeps the records from before there is an output folder."""

    def __init__(self) -> None:
        super().__init__()
        self.records: collections.deque = collections.deque(maxlen=_MOST_EARLY_RECORDS)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def _is_own(record: logging.LogRecord) -> bool:
    return record.name == _PACKAGE or record.name.startswith(f"{_PACKAGE}.")


def _few(lines: list[str]) -> str:
    """The first of a list that another package logs, without colours, and how many there are."""
    names = [_COLOUR.sub("", line).strip() for line in lines]
    return f" {', '.join(names[:3])}{f', ... {len(names)} in all' if len(names) > 3 else ''}"


def start_log(*, rank: int = 0, file_follows: bool = False) -> None:
    """Show this package's messages on the console, and keep them for a later ``log.txt``.

    Args:
        rank: of this process; only 0 writes to the console.
        file_follows: whether :func:`log_to_folder` will be called, so that the console can leave
            things to the file.
    """
    logging.captureWarnings(True)
    for name in _LOGGED:
        logger = logging.getLogger(name)
        _remove_handlers(logger)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(_Early())
        if rank == 0:
            logger.addHandler(_Console(with_file=file_follows))


def log_to_folder(folder: str, *, rank: int = 0) -> str:
    """From now on log to ``log.txt`` in a folder, with what :func:`start_log` has kept.

    Handlers that others, such as Detectron2, gave these loggers are taken off.

    Args:
        folder: it must be there.
        rank: of this process; others than 0 write to ``log.txt.rank<n>``.

    Returns:
        The path of the file.
    """
    path = os.path.join(folder, "log.txt" + (f".rank{rank}" if rank else ""))
    kept = [
        record
        for name in _LOGGED
        for handler in logging.getLogger(name).handlers
        if isinstance(handler, _Early)
        for record in handler.records
    ]
    start_log(rank=rank, file_follows=True)
    file = _File(path)
    for record in sorted(kept, key=lambda record: record.created):
        file.handle(record)
    for name in _LOGGED:
        logger = logging.getLogger(name)
        for handler in [h for h in logger.handlers if isinstance(h, _Early)]:
            logger.removeHandler(handler)
        logger.addHandler(file)
    return path


def _remove_handlers(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        if isinstance(handler, (_Console, _File)):
            handler.close()


def _is_started() -> bool:
    handlers = logging.getLogger(_PACKAGE).handlers
    return any(isinstance(handler, _Console) for handler in handlers)


def progress_bar(*, total: int, done: int = 0, label: str, unit: str, keep: bool = False):
    """A bar at the bottom of a terminal; None where there is none or no command runs.

    Args:
        total: steps in all.
        done: steps before this run.
        label: in front of the bar.
        unit: what a step is called, in short.
        keep: leave the bar on the screen at its end.

    Returns:
        A ``tqdm``, which the console's lines are written above.
    """
    if not (_is_started() and sys.stdout.isatty() and sys.stderr.isatty()):
        return None
    from tqdm import tqdm

    return tqdm(
        total=total,
        initial=done,
        desc=label,
        unit=unit,
        leave=keep,
        dynamic_ncols=True,
        file=sys.stderr,
    )
