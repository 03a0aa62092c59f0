"""``resobj-d2 eval``: ``train --eval-only``."""

from __future__ import annotations

from collections.abc import Sequence

from . import train

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return train.main(["--eval-only", *argv], prog="resobj-d2 eval")
