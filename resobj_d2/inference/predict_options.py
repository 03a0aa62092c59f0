"""The options of the command ``predict``."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from resobj_d2.command import (
    CommandParser,
    add_config_option,
    add_import_option,
    add_weights_option,
    with_weights,
)

__all__ = ["WITHOUT_DATASETS", "parser"]

WITHOUT_DATASETS = (
    "DATASETS.TEST gives the names of the classes. Where the datasets are not at hand, append "
    "DATASETS.REGISTER '[]' DATASETS.TEST '()'; classes are then shown by number."
)


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {text}")
    return value


def _at_least(lowest: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < lowest:
            raise argparse.ArgumentTypeError(f"must be at least {lowest}, got {text}")
        return value

    return number


def parser() -> argparse.ArgumentParser:
    """Its parser; ``overrides`` of what it returns are changes to the config."""
    result = _Parser(
        prog="resobj-d2 predict",
        description="Detect objects in images, videos and cameras; writes pictures and results.",
        epilog=WITHOUT_DATASETS,
    )
    add_import_option(result)
    add = result.add_argument
    add_config_option(result)
    add_weights_option(result)
    source = result.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="images, videos, folders of images, or 'patterns'",
    )
    source.add_argument(
        "--camera", type=_at_least(0), metavar="N", help="the camera of this number"
    )
    add("--output", required=True, metavar="DIR", help="folder for what is written")
    add(
        "--frames", type=_at_least(1), metavar="N",
        help="most frames of a video or camera (default: all; a camera until Ctrl-C)",
    )  # fmt: skip
    add(
        "--confidence-threshold", type=_fraction, metavar="SCORE",
        help="lowest score of the boxes drawn (default 0.3; 0 with PREDICT.SCORE_THRESH)",
    )  # fmt: skip
    add("--draw-limit", type=int, default=100, metavar="N", help="most boxes drawn on an image")
    add(
        "--tile", type=int, metavar="N",
        help="also detect in square tiles of this side, for small objects (PREDICT.TILE)",
    )  # fmt: skip
    add(
        "--overlap", type=_fraction, metavar="PART",
        help="fraction of a tile that the next one repeats (PREDICT.TILE_OVERLAP, default 0.2)",
    )  # fmt: skip
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the configuration")
    return result


class _Parser(CommandParser):
    """Turns the options that stand for keys of the config into ``overrides``."""

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        options = super().parse_args(args, namespace)
        short = {"PREDICT.TILE": options.tile, "PREDICT.TILE_OVERLAP": options.overlap}
        given = [x for key, value in short.items() if value is not None for x in (key, str(value))]
        options.overrides = with_weights([*given, *options.opts], options.weights)
        return options
