"""``resobj-d2 eval``: ``train --eval-only``."""

from __future__ import annotations

from collections.abc import Sequence

from . import train

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return train.main(["--eval-only", *argv], prog="resobj-d2 eval", examples=_EXAMPLES)


_EXAMPLES = """
A configuration is a file, or a name that `resobj-d2 configs` lists. Examples:

  {prog} --config-file output/.../config.yaml --weights output/.../model_final.pth
  {prog} --config-file NAME --num-gpus 8 --weights output/.../model_best.pth
"""
