"""Common behaviour of this package's commands: log, operators line at the start, error messages.

A user's mistake (a wrong key, file or dataset) ends in one line and exit status 2. Everything else
is a defect and shows its traceback. ``--debug`` (or ``--traceback``) or the environment variable
``RESOBJ_TRACEBACK=1`` show it for mistakes too.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from resobj_d2.process import did_you_mean, start_log

__all__ = [
    "DEBUG",
    "METAVARS",
    "CommandParser",
    "add_config_option",
    "add_import_option",
    "add_weights_option",
    "explain",
    "is_users_mistake",
    "one_line_per_process",
    "run_command",
    "wants_traceback",
    "with_weights",
]

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
MISTAKE = 2  # exit status
DEBUG = ("--debug", "--traceback")
LONGEST = 2000  # characters of a message
INTERRUPTED = 130  # what shells report for Ctrl-C

METAVARS = {
    "CONFIG": "a yaml, or the name of a configuration",
    "DATA": "what `data check` takes: a file or folder of annotations, or a registered name",
    "DIR": "a folder",
    "DUMP": "a folder that `analyze dump` wrote, or its run",
    "FILE": "a file",
    "H": "height in pixels",
    "IOU": "from 0 to 1",
    "KEY": "of a configuration",
    "KEY VALUE": "pairs of a configuration",
    "METHOD": "of a study",
    "MODULE": "of Python",
    "N": "a whole number",
    "NAME": "of a dataset, split or configuration",
    "PART": "of a whole, from 0 to 1",
    "PATH": "a file or folder, or a pattern of them",
    "PATTERN": "of names",
    "RUN": "folder of a training",
    "SCORE": "from 0 to 1",
    "SOURCE": "folder of a run or dump, or a COCO results json",
    "TEXT": "any",
    "URL": "an address",
    "VALUE": "of a key",
    "W": "width in pixels",
    "X": "a number",
}
"""What the words in capitals of every ``--help`` stand for."""

_CHOICE = re.compile(r"invalid choice: '(?P<given>[^']*)' \(choose from (?P<known>.*)\)")

# Libraries that validate user input: configs, registries, datasets.
_CHECKING = ("resobj_d2", "benchmarks", "detectron2.config", "detectron2.data", "fvcore", "yacs")


def run_command(
    main: Callable[[list[str]], int | None],
    argv: Sequence[str] | None = None,
    *,
    uses_operators: bool = True,
    log: bool = True,
) -> int:
    """Run a command; return its exit status.

    Args:
        main: takes the arguments; returns the exit status (None means 0).
        argv: the arguments, by default those of the process; ``--debug`` is removed.
        uses_operators: first print the line that says which operators run.
        log: show messages and warnings on the console, among the rest of the output.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if set(DEBUG) & set(arguments):
        arguments = [x for x in arguments if x not in DEBUG]
        os.environ["RESOBJ_TRACEBACK"] = "1"  # worker processes inherit it
    if log:
        start_log()
    try:
        if uses_operators and not {"-h", "--help"} & set(arguments):
            _say_which_operators_run()
        return main(arguments) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, is gone; without this Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if getattr(error, "exit_code", None) == MISTAKE:
            return MISTAKE  # a process of torch's launcher; it has printed its error
        if wants_traceback() or not is_users_mistake(error):
            raise
        print(f"error: {explain(error)}", file=sys.stderr)
        return MISTAKE


class CommandParser(argparse.ArgumentParser):
    """argparse's, without abbreviations: an option that does not exist is told, with similar ones.

    A script that says ``--data`` for ``--dataset`` would mean something else as soon as there is a
    ``--data``.
    """

    def __init__(self, **options) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """As argparse's, and what an unknown option or choice may have been meant to be."""
        words = message.split() if message.startswith("unrecognized arguments") else []
        unknown = next((x.partition("=")[0] for x in words if x.startswith("--")), "")
        if unknown:
            known = [x for x in self._option_string_actions if x.startswith("--")]
            begins = any(x.startswith(unknown) for x in known)
            message += did_you_mean(unknown, known, most=3 if begins else 1)
        if choice := _CHOICE.search(message):
            message += did_you_mean(choice["given"], re.findall(r"[\w.-]+", choice["known"]))
        super().error(message)


def add_config_option(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """``--config-file CONFIG``, "" where it is left out.

    Args:
        parser: of the command.
        required: False where the command can do without.
    """
    parser.add_argument(
        "--config-file",
        default="",
        required=required,
        metavar="CONFIG",
        help="a yaml, or the name of a configuration",
    )


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """``--import MODULE``, repeatable, for ``load_config(..., imports=args.imports)``."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="import it first, so that the config can name what it registers (as IMPORTS)",
    )


def add_weights_option(parser: argparse.ArgumentParser) -> None:
    """``--weights FILE``, for :func:`with_weights`."""
    parser.add_argument(
        "--weights", metavar="FILE", help="a checkpoint, in place of the config's MODEL.WEIGHTS"
    )


def with_weights(opts: Sequence[str], weights: str | None) -> list[str]:
    """KEY VALUE pairs for ``load_config``, with the checkpoint of ``--weights`` last."""
    return [*opts, *(["MODEL.WEIGHTS", weights] if weights else [])]


def one_line_per_process(main: Callable) -> Callable:
    """Wraps a function for a launcher's processes, whose exceptions reach the command garbled."""

    @functools.wraps(main)
    def run(*args):
        try:
            return main(*args)
        except Exception as error:
            if wants_traceback() or not is_users_mistake(error):
                raise
            print(f"error: {explain(error)}", file=sys.stderr)
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            # Not sys.exit: threads of a process group would abort at interpreter exit.
            os._exit(MISTAKE)

    return run


def wants_traceback() -> bool:
    """Whether the user asked to see where an error comes from."""
    return os.environ.get("RESOBJ_TRACEBACK", "") not in ("", "0")


def is_users_mistake(error: BaseException) -> bool:
    """Whether an exception stems from the user's input rather than from a defect.

    This package's own exceptions and unusable files always do. Python's built-in ones do if code
    that validates input raised them with a message.
    """
    kind = type(error)
    if kind.__module__.startswith(("resobj_d2.", "yaml.")) or isinstance(error, OSError):
        return True
    if isinstance(error, ImportError):  # an optional package that is not installed
        return not str(error.name or "").startswith("resobj_d2.")
    if not error.args or not str(error.args[0]):
        return False
    if "Original Traceback" in str(error):  # torch's DataLoader: a worker's exception as text
        return isinstance(error, ValueError)
    origin = _origin(error)
    if isinstance(error, ValueError):
        return origin.startswith(_CHECKING) and _was_raised_on_purpose(error)
    if isinstance(error, KeyError):
        return origin.endswith(".registry") or origin.startswith("detectron2.data.catalog")
    if isinstance(error, AssertionError):
        return origin.startswith(_CHECKING) and not origin.startswith("resobj_d2")
    return False


def _was_raised_on_purpose(error: BaseException) -> bool:
    """Whether it was raised explicitly, not by a builtin (unpacking, ``int()``, ``zip``).

    True if there is no source code to tell from.
    """
    frames = traceback.extract_tb(error.__traceback__)
    line = (frames[-1].line or "") if frames else ""
    return not line or line.startswith("raise") or not frames[-1].filename.startswith(_PACKAGE)


def explain(error: BaseException) -> str:
    """An exception's message in one line."""
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        message = f"{error.filename}: {error.strerror}"
    if "Original Traceback" in message:
        message = re.sub(r"^[\w.]+: ", "", message.strip().splitlines()[-1])
    line = " ".join(message.split()) or type(error).__name__
    # A value of the user's may stand in it, of any length.
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def _origin(error: BaseException) -> str:
    """Name of the module that raised it; Python's own library is attributed to its caller."""
    library = sysconfig.get_path("stdlib")
    name = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not file.startswith(library) or "site-packages" in file:
            name = frame.f_globals.get("__name__", "")
            if name == "__main__":  # python -m
                name = getattr(frame.f_globals.get("__spec__"), "name", None) or name
    return name


def _say_which_operators_run() -> None:
    with contextlib.suppress(ModuleNotFoundError):  # without torch: the command itself reports it
        from .ops import describe_operators

        print(describe_operators(), file=sys.stderr)
