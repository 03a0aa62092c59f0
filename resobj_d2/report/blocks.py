"""What a page is made of: sections of tables, plots and text, without any markup."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Code", "Heading", "Note", "Plot", "Section", "Table", "left_out", "named"]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A drawing.

    Attributes:
        svg: from :mod:`.plots`.
        alt: what it shows: its title, also for who cannot see it.
        caption: how to read it.
    """

    svg: str
    alt: str
    caption: str
    kind: str = "plot"


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A title within a section."""

    text: str
    kind: str = "heading"


def named(name: str, runs: int) -> list[Heading]:
    """A title with the run's name, where there are several."""
    return [Heading(text=name)] if runs > 1 else []


@dataclass(frozen=True, kw_only=True)
class Note:
    """A sentence on what stands above it."""

    text: str
    kind: str = "note"


def left_out(names: Sequence[str], why: str, blocks: Sequence[object]) -> list[Note]:
    """A line about the runs that a section lacks, where it has others.

    Args:
        names: of these runs.
        why: they are not there.
        blocks: of the section.
    """
    return [Note(text=f"Not shown of {', '.join(names)}: {why}.")] if names and blocks else []


@dataclass(frozen=True, kw_only=True)
class Code:
    """Text as it is, folded away."""

    caption: str
    text: str
    kind: str = "code"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of values by column.

    Attributes:
        rows: with the same keys, which are the header.
        caption: above it.
        digits: of numbers after the point.
        limit: most rows that are shown.
    """

    rows: Sequence[Mapping[str, object]]
    caption: str
    digits: int = 1
    limit: int = 40
    kind: str = "table"

    @property
    def header(self) -> list[str]:
        """Names of the columns."""
        return list(self.rows[0]) if self.rows else []

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers, also as text."""
        return [all(_is_number(row[name]) for row in self.rows) for name in self.header]

    @property
    def cells(self) -> list[list[str]]:
        """What is shown."""
        return [[self._text(row[name]) for name in self.header] for row in self.rows[: self.limit]]

    @property
    def more(self) -> str:
        """A line about the rows that are not shown."""
        hidden = len(self.rows) - self.limit
        return f"... and {hidden} more" if hidden > 0 else ""

    def _text(self, value: object) -> str:
        if value is None or value != value:
            return "-"
        return f"{value:.{self.digits}f}" if isinstance(value, float) else str(value)


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"-|-?\d+(\.\d+)?", value) is not None
    return isinstance(value, (int, float, type(None)))


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page.

    Attributes:
        key: for links.
        short: in the navigation.
        title, text: above the blocks.
        blocks: in their order.
    """

    key: str
    short: str
    title: str
    text: str = ""
    blocks: list[Plot | Table | Heading | Note | Code] = field(default_factory=list)
