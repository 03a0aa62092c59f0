"""Names in plots as they are."""

from __future__ import annotations

__all__ = ["plain_label"]


def plain_label(text: str) -> str:
    """A name for matplotlib: dollars start no formula, and an underscore hides no series.

    Args:
        text: as a class, run or metric is called; anything.
    """
    # A series whose name begins with an underscore is left out of the legend.
    shown = f" {text}" if text.startswith("_") else text
    return shown.replace("$", r"\$")
