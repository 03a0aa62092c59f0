"""Residual Objectness in a few minutes on a CPU: generate scenes, train, evaluate, draw.

    python -m resobj_d2.demo [--minutes 6 | --iterations 900 | --quick] [--output output/demo]

Everything is trained from scratch. The exit status is 1 if the AP stays below a floor far above an
untrained detector's (AP 0.0), so the demo is also a test.
"""

from .command import main

__all__ = ["main"]
