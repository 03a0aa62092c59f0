"""Words that messages have in common."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["agreeing", "counted", "did_you_mean", "distinct_names", "similar_names"]

_SINGULARS = {"are": "is", "do": "does", "have": "has", "reach": "reaches", "were": "was"}
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


def agreeing(number: int, verb: str) -> str:
    """A verb after a count: ``does`` or ``do``, ``repeats`` or ``repeat``.

    Args:
        verb: in the plural.
    """
    return _SINGULARS.get(verb, verb + "s") if number == 1 else verb


def distinct_names(paths: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Names of files or folders; those that are the same get the folders in which they differ.

    Args:
        paths: of each; nothing has to be there.
        names: of each, mostly the last part of its path or one before it.

    Returns:
        ``config`` where it is the only one, else ``a/config`` and ``b/config``; ``(2)`` after the
        second of the same path.
    """
    found = list(names)
    folders = [_folders_of(path, name) for path, name in zip(paths, names, strict=True)]
    for depth in range(1, max(map(len, folders), default=0) + 1):
        counts = Counter(found)
        same = [k for k, name in enumerate(found) if counts[name] > 1]
        for k in same:
            found[k] = "/".join((*folders[k][-depth:], names[k]))
    seen: Counter[str] = Counter()
    for k, name in enumerate(found):
        seen[name] += 1
        if seen[name] > 1:
            found[k] = f"{name} ({seen[name]})"
    return found


def _folders_of(path: Path, name: str) -> tuple[str, ...]:
    """The folders above the part of a path that has given the name."""
    parts = path.absolute().parts[1:]
    own = [k for k, part in enumerate(parts) if name in (part, Path(part).stem)]
    return parts[: own[-1]] if own else parts[:-1]


def similar_names(
    name: str, known: Iterable[str], *, most: int = 3, cutoff: float = 0.6
) -> list[str]:
    """Those that a name may have been meant to be, the closest first.

    Args:
        most: how many at most.
        cutoff: least similarity, from 0 to 1 for the same name.

    Returns:
        Names of ``known``; equally close ones in its order. One that goes on where ``name`` ends,
        from two letters on, counts as close whatever its length.
    """
    ratios = {x: difflib.SequenceMatcher(None, x, name).ratio() for x in known}
    goes_on = {x for x in ratios if len(name) > 1 and x.startswith(name)}
    close = [x for x, ratio in ratios.items() if ratio >= cutoff or x in goes_on]
    return sorted(close, key=lambda x: -ratios[x])[:most]


def did_you_mean(name: str, known: Iterable[str], *, most: int = 3, cutoff: float = 0.6) -> str:
    """The end of a message about a name that is not known: the similar ones, or nothing."""
    similar = similar_names(name, known, most=most, cutoff=cutoff)
    return f". Did you mean {' or '.join(similar)}?" if similar else ""
