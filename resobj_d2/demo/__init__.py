"""Residual Objectness in a few minutes on a CPU: generate scenes, train, evaluate, draw.

    python -m resobj_d2.demo [--minutes 6 | --iterations 900 | --quick] [--output output/demo]

Everything is trained from scratch. The exit code is 1 where the AP stays below a floor that an
untrained detector (AP 0.0) does not come near: the demo is also a test.
"""

from .command import main

__all__ = ["main"]
