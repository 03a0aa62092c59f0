"""``resobj-d2 bench``: the benchmarks of a checkout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

_BESIDE_THE_PACKAGE = Path(__file__).resolve().parents[2]


def main(argv: Sequence[str]) -> int:
    """The command; takes the arguments of ``python -m benchmarks``.

    Raises:
        FileNotFoundError: there is no checkout.
    """
    for checkout in (_BESIDE_THE_PACKAGE, Path.cwd()):
        if (checkout / "benchmarks" / "worker.py").is_file():
            sys.path.insert(0, str(checkout))
            from benchmarks.__main__ import main as run

            return run(list(argv), prog="resobj-d2 bench")
    raise FileNotFoundError(
        "bench needs the checkout of resobj_d2, whose folder benchmarks/ is not installed: clone "
        "the repository and run it there"
    )
