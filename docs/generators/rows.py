"""Tables of pages of which a command makes some rows at a time."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.table import replace_between_marks

__all__ = ["with_rows"]


def with_rows(
    page: str,
    lines: Sequence[str],
    *,
    head: str,
    order: Sequence[tuple[str, ...]],
    command: str,
) -> str:
    """The page with these rows between the command's marks, and with its own others.

    Args:
        page: Markdown.
        lines: rows of the table.
        head: its first two lines.
        order: of the rows, by their first cells; a row of no such cells is dropped.
        command: in the marks.

    Raises:
        ValueError: the page lacks the marks.
    """
    old = page.partition(f"<!-- begin: {command} -->")[2].partition("<!-- end")[0].splitlines()
    width = len(order[0])
    found = {}
    for line in [*old, *lines]:
        found[tuple(cell.strip() for cell in line.strip("|").split("|")[:width])] = line
    rows = [found[cells] for cells in order if cells in found]
    return replace_between_marks(page, "\n".join([head, *rows]), command)
