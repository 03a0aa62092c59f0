"""The command lines that a run ends with: how to resume it, evaluate it, predict with it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence

__all__ = ["evaluate_command", "predict_command", "present_command", "resume_command"]


def resume_command(argv: Sequence[str] | None = None) -> str:
    """The present command with ``--resume``, which it has to understand.

    Args:
        argv: of the process, ``sys.argv`` by default.
    """
    argv = list(sys.argv if argv is None else argv)
    arguments = argv[1:]
    if "--resume" not in arguments:
        # In front: what follows the first KEY is taken for further KEY VALUE pairs.
        position = arguments.index("train") + 1 if "train" in arguments[:2] else 0
        arguments.insert(position, "--resume")
    return _join([*_program(argv[0]), *arguments])


def present_command() -> str:
    """The present command, for one that goes on where it was stopped when it is given again."""
    return _join([*_program(sys.argv[0]), *sys.argv[1:]])


def evaluate_command(checkpoint: str, output_dir: str) -> str:
    """Evaluates a checkpoint with the configuration that its run has written."""
    return _with_config("eval", checkpoint, output_dir)


def predict_command(checkpoint: str, output_dir: str) -> str:
    """Draws detections on the user's images."""
    options = ["--input", "IMAGES", "--output", "drawn"]
    return _with_config("predict", checkpoint, output_dir, *options)


def _with_config(command: str, checkpoint: str, output_dir: str, *options: str) -> str:
    config = os.path.join(output_dir, "config.yaml")
    words = [command, "--config-file", config, "--weights", checkpoint, *options]
    return _join([*_own_program(), *words])


def _own_program() -> list[str]:
    """``resobj-d2`` where that is running; otherwise what finds the package as this process did."""
    if os.path.basename(sys.argv[0]) == "resobj-d2":
        return _program(sys.argv[0])
    return [*_python(), "-m", "resobj_d2"]


def _join(words: Sequence[str]) -> str:
    return " ".join(map(_quote, words))


def _quote(word: str) -> str:
    """For a shell; readable where it is possible, as ``"('a',)"`` is."""
    if "'" in word and not set(word) & set('"$`\\!'):
        return f'"{word}"'
    return shlex.quote(word)


def _program(path: str) -> list[str]:
    """How the running program is started: ``python -m module``, ``python script.py`` or a name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return [*_python(), "-m", spec.name.removesuffix(".__main__")]
    if path.endswith(".py"):
        return [*_python(), path]
    name = os.path.basename(path)
    return [name if _is_same(shutil.which(name), path) else path]


def _python() -> list[str]:
    """``python`` where that is the running one."""
    for name in ("python", "python3"):
        if _is_same(shutil.which(name), sys.executable):
            return [name]
    return [sys.executable]


def _is_same(first: str | None, second: str) -> bool:
    """The same file by the same way: a virtual environment's python may be a link to another's."""
    return first is not None and os.path.abspath(first) == os.path.abspath(second)
