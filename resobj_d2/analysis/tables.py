"""Tables of analyses: lists of dicts as ``pandas.DataFrame`` takes them, printed and written."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from resobj_d2.process import replacing

__all__ = ["Row", "markdown", "name_apart", "write_json"]

Row = dict[str, Any]
"""One row: values by column. Numbers that do not exist are None."""


def markdown(
    rows: Sequence[Mapping[str, object]], *, digits: int = 1, limit: int | None = None
) -> str:
    """A table for reading.

    Args:
        rows: with the same columns.
        digits: of numbers after the point; columns of whole numbers have none.
        limit: most rows to show; a last line counts the others.
    """
    shown = rows if limit is None else rows[:limit]
    cells = [{key: _cell(value, digits) for key, value in row.items()} for row in shown]
    numeric = [
        all(type(row[key]) in (int, float, type(None)) for row in shown)
        for key in (shown[0] if shown else {})
    ]
    text = tabulate(
        cells,
        headers="keys",
        tablefmt="github",
        disable_numparse=True,
        colalign=["right" if number else "left" for number in numeric] if shown else None,
    )
    more = len(rows) - len(shown)
    return f"{text}\n\n... and {more} more (--json has all)" if more else text


def _cell(value: object, digits: int) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{round(value, digits) + 0.0:.{digits}f}"  # without -0.0
    return str(value).replace("|", "\\|")


def name_apart(name: str, others: Collection[str]) -> str:
    """A name for what is none of the others: in parentheses where one of them has it."""
    while name in others:
        name = f"({name})"
    return name


def write_json(path: Path, tables: object) -> None:
    """Write tables, mostly by name; the file is whole or not there.

    Args:
        path: of the file.
        tables: what json can write, without NaN: numbers that do not exist are None.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as file:
        json.dump(tables, file, indent=1, allow_nan=False)
