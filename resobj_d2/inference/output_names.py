"""What the files of a run of ``predict`` are called, and that none replaces an input."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["distinct_names", "keep_inputs"]


def distinct_names(stems: Sequence[str]) -> list[str]:
    """The stems, numbered where files of different folders have the same."""
    names: list[str] = []
    taken: set[str] = set()
    for stem in stems:
        name, count = stem, 1
        while taken & {name.lower(), f"{name}_steps".lower()}:
            count += 1
            name = f"{stem}_{count}"
        taken |= {name.lower(), f"{name}_steps".lower()}
        names.append(name)
    return names


def keep_inputs(inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """
    Raises:
        FileExistsError: one of ``outputs`` is one of ``inputs``.
    """
    clash = {p.resolve() for p in outputs} & {p.resolve() for p in inputs}
    if clash:
        raise FileExistsError(
            f"{min(clash)} is an input and would be overwritten: choose another output folder"
        )
