"""The scalars of a run, as Detectron2's ``JSONWriter`` leaves them in ``metrics.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from math import isfinite
from pathlib import Path

__all__ = ["FILE", "Scalars", "Series", "read_scalars", "thinned"]

FILE = "metrics.json"
"""In the folder of a run."""

Series = list[tuple[int, float]]
"""(iteration, value), by ascending iteration."""

Scalars = dict[str, Series]
"""Series by the name of the scalar."""


def read_scalars(path: str | os.PathLike) -> Scalars:
    """The finite scalars of a run over its iterations; empty without the file.

    Where a run was resumed from an earlier iteration, the later values stay: those that a scalar
    had from there on are dropped. The lines of one moment are in any order, so one scalar says
    nothing of another. Lines that are no json object, such as the last one of a killed run, are
    left out.

    Args:
        path: of the run's folder, or of the file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE
    if not path.is_file():
        return {}
    scalars: Scalars = {}
    with open(path, encoding="utf-8", errors="replace") as file:
        for iteration, values in _parsed(file):
            for name, value in values.items():
                series = scalars.setdefault(name, [])
                while series and series[-1][0] >= iteration:  # the run was resumed from here
                    series.pop()
                series.append((iteration, value))
    return scalars


def thinned(series: Series, most: int) -> Series:
    """At most so many points, as means of consecutive ones at the last one's iteration."""
    size = -(-len(series) // most)
    blocks = (series[i : i + size] for i in range(0, len(series), size))
    return [(b[-1][0], sum(value for _, value in b) / len(b)) for b in blocks]


def _parsed(lines: Iterator[str]) -> Iterator[tuple[int, dict[str, float]]]:
    """Iteration and scalars of each line that has them."""
    for line in lines:
        try:
            # Scalars are not nested. After a kill, the resumed run appends to the broken line.
            found = json.loads(line[line.rfind("{") :])
        except (ValueError, RecursionError):
            continue
        iteration = found.pop("iteration", None) if isinstance(found, dict) else None
        if isinstance(iteration, int):
            yield iteration, {name: x for name, x in found.items() if _is_finite(x)}


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, (int, float)) and isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False
