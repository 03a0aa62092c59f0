"""A batch that is trained in parts: what its losses are divided by is counted over all of it.

Outside of :class:`BatchParts` a batch is its only part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor

__all__ = ["BatchParts", "over_parts", "per_part"]

_active: BatchParts | None = None


class BatchParts:
    """Counts over the parts of a batch, from a first pass over them.

        parts = BatchParts(2)
        for part in batch.chunk(2):  # without gradients
            with parts.counting():
                model(part)
        for part in batch.chunk(2):
            with parts.training():
                (model(part) / 2).backward()

    What is counted must not depend on what it is divided by, and each part must count the same
    things in the same order.

    Args:
        number: of parts.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._sums: list[Tensor] = []
        self._call = 0
        self._counting = False

    def counting(self) -> contextlib.AbstractContextManager[None]:
        """Around the forward of each part in the first pass."""
        return self._part(counting=True)

    def training(self) -> contextlib.AbstractContextManager[None]:
        """Around the forward of each part in the second pass."""
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
        """Of one thing that is counted, over all parts; in the first pass the count itself."""
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
    """The divisor of a part's losses, from that of the batch: the parts' losses are averaged."""
    return divisor if _active is None else divisor / _active.number
