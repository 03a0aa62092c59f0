"""Single values of annotations: what counts as a number, what can be read as one."""

from __future__ import annotations

import math
import sys

__all__ = ["FLAGS", "fits_float", "is_number", "number_of", "whole_number_of"]

FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1, "": 0, "none": 0, "null": 0}


def is_number(value: object) -> bool:
    """Whether it is a number, and no bool."""
    return type(value) is float or type(value) is int


def fits_float(value: object) -> bool:
    """Whether it is a number, and no whole one beyond all floats, which json may hold."""
    return type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)


def number_of(value: object) -> float | None:
    """A number, also from text; None where it is none."""
    if is_number(value):
        return value  # type: ignore[return-value]
    if not isinstance(value, str) or "_" in value:
        return None
    try:
        return float(value)
    except ValueError:
        return None


def whole_number_of(value: object) -> int | None:
    """A whole number, also from text or a fraction like 3.0; None where it is none."""
    if type(value) is int:
        return value
    if isinstance(value, str) and value.strip().lstrip("+-").isdecimal() and len(value) < 20:
        return int(value)
    number = number_of(value)
    if number is None or not math.isfinite(number) or not float(number).is_integer():
        return None
    return int(number)
