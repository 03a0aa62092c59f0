"""Training a batch in parts, with the divisors of its losses counted over the whole batch.

Outside :class:`BatchParts` the batch is a single part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor

__all__ = ["BatchParts", "over_parts", "per_part"]

_active: BatchParts | None = None


class BatchParts:
    """Counts over the parts of a batch, made in a first pass over them.

        parts = BatchParts(2)
        for part in batch.chunk(2):  # without gradients
            with parts.counting():
                model(part)
        for part in batch.chunk(2):
            with parts.training():
                (model(part) / 2).backward()

    Counts must not depend on the divisors, and each part must count the same things in the same
    order.

    Args:
        number: number of parts.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._sums: list[Tensor] = []
        self._call = 0
        self._counting = False

    def counting(self) -> contextlib.AbstractContextManager[None]:
        """Context for the forward of each part in the first pass."""
        return self._part(counting=True)

    def training(self) -> contextlib.AbstractContextManager[None]:
        """Context for the forward of each part in the second pass."""
        return self._part(counting=False)

    @contextlib.contextmanager
    def _part(self, *, counting: bool) -> Iterator[None]:
        global _active
        self._call, self._counting = 0, counting
        _active = self
        try:
            yield
        finally:
            _active = None

    def sum(self, count: Tensor) -> Tensor:
        """Sum of one count over all parts; in the first pass, the count of this part."""
        call = self._call
        self._call += 1
        if not self._counting:
            return self._sums[call]
        if call == len(self._sums):
            self._sums.append(count.detach().clone())
        else:
            self._sums[call] = self._sums[call] + count.detach()
        return count


def over_parts(count: Tensor) -> Tensor:
    """A count of this part, of any shape, summed over the parts of the batch."""
    return count if _active is None else _active.sum(count)


def per_part(divisor: Tensor) -> Tensor:
    """The divisor of a part's losses, given the batch's: the losses of the parts are averaged."""
    return divisor if _active is None else divisor / _active.number
