"""What a check finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from resobj_d2.data.notes import KINDS, Note

__all__ = ["LEVELS", "Finding", "finding", "note_findings"]

LEVELS = ("error", "warning", "info")
_KEPT = 1000  # examples of a finding; the count has all of them
# What registration noted, and what it means for a dataset: anything else is a warning. Boxes that
# are left out are annotations that somebody made in vain.
_NOTE_LEVELS = {
    "no_size": "error",
    "outside": "error",
    "lossy": "error",
    "convention": "error",
    "text_number": "info",
    "flag": "info",
    "backslash": "info",
    "area": "info",
    "ignored": "info",
    "twin_category": "info",
    "category_keypoints": "info",
    "mask": "info",
    "mask_part": "info",
    "keypoints": "info",
    "other_class": "info",
    "size_from_picture": "info",
    "listed_twice": "info",
}
_REPLACED = {"twice", "same_file", "absent_class"}  # by findings that see more


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something about a dataset.

    Attributes:
        level: of :data:`LEVELS`: "error" for what stops a training, loses annotations or makes an
            evaluation worthless, "warning" for what is probably a mistake, "info" for the rest.
        kind: a short name, for programs.
        count: how often.
        message: what it is, without the count.
        examples: the first ones.
    """

    level: str
    kind: str
    count: int
    message: str
    examples: tuple[str, ...] = ()


def finding(level: str, kind: str, message: str, examples: Sequence[str]) -> list[Finding]:
    """One for all of its examples; nothing where there are none."""
    if not examples:
        return []
    kept = tuple(examples[:_KEPT])
    return [Finding(level=level, kind=kind, count=len(examples), message=message, examples=kept)]


def note_findings(notes: Sequence[Note]) -> list[Finding]:
    """What registration mended or found remarkable."""
    return [
        Finding(
            level=_NOTE_LEVELS.get(note.kind, "warning"),
            kind=note.kind,
            count=note.count,
            message=KINDS[note.kind].text,
            examples=tuple(example for example in note.examples if example),
        )
        for note in notes
        if note.kind not in _REPLACED
    ]
