"""Keypoints that change places in a mirrored picture."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["flip_map"]

# Words and letters of their own (left_eye, eye-left, eye_L), and words that capitals set apart
# (earLeft, leftEar).
_SIDE = re.compile(
    "(?<![A-Za-z])(?i:left|right|l|r)(?![A-Za-z])"
    "|(?<=[a-z0-9])(?:Left|Right|L|R)(?![a-z])"
    "|(?<![A-Za-z])(?:left|right)(?=[A-Z])"
)
_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}


def flip_map(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of keypoints that a mirror exchanges, by left and right in their names.

    Args:
        names: of the keypoints, all different.

    Returns:
        (left, right) names; what has no counterpart stays where it is.
    """
    present = set(names)
    pairs, paired = [], set()
    for name in names:
        other = _SIDE.sub(_exchange, name)
        if other != name and other in present and name not in paired:
            paired |= {name, other}
            pairs.append((name, other))
    return pairs


def _exchange(match: re.Match) -> str:
    word = match[0]
    other = _OTHER[word.lower()]
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other
