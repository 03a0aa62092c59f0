"""Means of a few runs, and what can be said about them.

Small samples of Student's distribution; a difference of two methods is taken seed by seed, since
runs of one seed share their images' order and their start.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["LEVEL", "Comparison", "Interval", "compare", "mean_interval", "t_quantile"]

LEVEL = 0.95
"""Of all intervals."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its confidence interval.

    Attributes:
        mean: of the values; NaN of none.
        half_width: mean +- this is the interval; NaN of fewer than two values, which have none.
        count: of values.
    """

    mean: float
    half_width: float
    count: int

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half_width

    @property
    def sign(self) -> str:
        """``+`` or ``-`` where the whole interval lies above or below 0, else ``?``.

        As tables print it, with two digits: an end that they show as 0 is not left out.
        """
        if round(self.low, 2) > 0:
            return "+"
        return "-" if round(self.high, 2) < 0 else "?"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A method against the baseline.

    Attributes:
        difference: of the method minus the baseline, over the seeds that both have.
        better: seeds of these on which the method is better.
        lower_is_better: of the metric, as of a loss.
    """

    difference: Interval
    better: int
    lower_is_better: bool = False

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the interval leaves out 0, else ``undecided``."""
        if self.difference.sign == "?":
            return "undecided"
        return "better" if (self.difference.sign == "-") == self.lower_is_better else "worse"


def _probability_within(t: float, freedom: int) -> float:
    """P(\\|T\\| < t) of Student's distribution (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return 2.0 / math.pi * (angle + sine * total) if odd else sine * total


@functools.cache
def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """t with P(\\|T\\| < t) = ``level``, for Student's distribution.

    Args:
        freedom: degrees of freedom, at least 1.
        level: in (0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """
    if freedom < 1 or not 0.0 < level < 1.0:
        raise ValueError(f"t_quantile needs freedom >= 1 and a level in (0, 1): {freedom}, {level}")
    low, high = 0.0, 1.0
    while _probability_within(high, freedom) < level:
        high *= 2.0
    for _ in range(200):
        middle = (low + high) / 2.0
        if middle in (low, high):
            break
        if _probability_within(middle, freedom) < level:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and confidence interval (:data:`LEVEL`) of independent values."""
    count = len(values)
    if not count:
        return Interval(mean=math.nan, half_width=math.nan, count=0)
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean=mean, half_width=math.nan, count=1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half_width = t_quantile(count - 1) * deviation / math.sqrt(count)
    return Interval(mean=mean, half_width=half_width, count=count)


def compare(
    values: Mapping[int, float], baseline: Mapping[int, float], *, lower_is_better: bool = False
) -> Comparison:
    """A method against the baseline, seed by seed.

    Args:
        values: of the method by seed.
        baseline: of the baseline by seed; seeds that only one of them has do not count.
        lower_is_better: of the metric, as of a loss.
    """
    differences = [value - baseline[seed] for seed, value in values.items() if seed in baseline]
    better = sum(value < 0 if lower_is_better else value > 0 for value in differences)
    return Comparison(
        difference=mean_interval(differences), better=better, lower_is_better=lower_is_better
    )
