"""Words that messages have in common."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["counted", "did_you_mean", "similar_names"]

_PLURALS = {"box": "boxes", "category": "categories", "class": "classes", "process": "processes"}


def counted(number: int, noun: str) -> str:
    """``1 image``, ``2 images``, ``3 boxes``.

    Args:
        noun: in the singular; its last word is the one that changes.
    """
    if number == 1:
        return f"{number} {noun}"
    before, space, last = noun.rpartition(" ")
    return f"{number} {before}{space}{_PLURALS.get(last, last + 's')}"


def similar_names(
    name: str, known: Iterable[str], *, most: int = 3, cutoff: float = 0.6
) -> list[str]:
    """Those that a name may have been meant to be, the closest first.

    Args:
        most: how many at most.
        cutoff: least similarity, from 0 to 1 for the same name.

    Returns:
        Names of ``known``; equally close ones in its order.
    """
    ratios = {x: difflib.SequenceMatcher(None, x, name).ratio() for x in known}
    close = [x for x, ratio in ratios.items() if ratio >= cutoff]
    return sorted(close, key=lambda x: -ratios[x])[:most]


def did_you_mean(name: str, known: Iterable[str], *, most: int = 3, cutoff: float = 0.6) -> str:
    """The end of a message about a name that is not known: the similar ones, or nothing."""
    similar = similar_names(name, known, most=most, cutoff=cutoff)
    return f". Did you mean {' or '.join(similar)}?" if similar else ""
