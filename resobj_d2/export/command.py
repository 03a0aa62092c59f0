"""Command line: ``resobj-d2 export``.

resobj-d2 export --config-file my.yaml --weights model_final.pth --format onnx --output my.onnx \
    --check photo.jpg

writes the detector as one file for programs without Detectron2. ``--check`` runs the file on
pictures of yours, compares it with the model, prints the differences and fails where they are
larger than rounding.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from detectron2.config import CfgNode

from resobj_d2.command import (
    CommandParser,
    add_config_option,
    add_import_option,
    add_weights_option,
    run_command,
    with_weights,
)
from resobj_d2.inference import Predictor
from resobj_d2.inference.predict import find_images
from resobj_d2.inference.predictor import load_prediction_config

from .check import (
    BOX_RELATIVE_TOLERANCE,
    BOX_TOLERANCE,
    SCORE_TOLERANCE,
    Parity,
    as_batch,
    compare,
)
from .detector import ExportableDetector, exportable
from .formats import FORMATS, check_path, load_exported, require, write_exported
from .metadata import describe

__all__ = ["check_file", "main", "time_file"]

_DIFFERS = 1  # exit status
_ROUNDS = 5  # of a measurement of time


def check_file(
    predictor: Predictor,
    detector: ExportableDetector,
    path: str | os.PathLike,
    images: Sequence[str | os.PathLike],
    *,
    format: str,
) -> Iterator[tuple[str, Parity]]:
    """Runs a file on pictures, each alone and then the first two as a batch.

    Args:
        predictor: of the model that was exported.
        detector: what was written to the file.
        path: of the file.
        images: files.
        format: a name of :data:`FORMATS`.

    Yields:
        A description of the picture and how far file and model agree on it.

    Raises:
        ImageError: a picture cannot be read.
    """
    exported = load_exported(path, format=format)
    inputs = [predictor.model_input(predictor.read(x), name=os.fspath(x)) for x in images]
    for image, x in zip(images, inputs, strict=True):
        size = f"{x['width']}x{x['height']}"
        (parity,) = compare(predictor.model, exported, [x], detector=detector)
        yield f"{image} ({size})", parity
    if len(inputs) > 1:
        both = compare(predictor.model, exported, inputs[:2], detector=detector)
        for image, parity in zip(images, both, strict=False):
            yield f"{image}, in a batch of 2", parity


@torch.no_grad()
def time_file(
    predictor: Predictor,
    detector: ExportableDetector,
    path: str | os.PathLike,
    images: Sequence[str | os.PathLike],
    *,
    format: str,
) -> tuple[float, float]:
    """Seconds that file and model need for a picture on average: of five rounds the median.

    Both start from the padded batch of one picture and end with tensors, in turns, after a round
    that is not counted.

    Args:
        predictor, detector, path, images, format: as for :func:`check_file`.
    """
    exported = load_exported(path, format=format)
    batches = []
    for image in images:
        inputs = [predictor.model_input(predictor.read(image), name=os.fspath(image))]
        batch = as_batch(inputs, detector.size_divisibility)
        batches.append(tuple(x.to(detector.device) for x in batch))

    def seconds(run: Callable) -> float:
        start = time.perf_counter()
        for batch in batches:
            for x in run(*batch):
                x.cpu()  # waits for the device
        return (time.perf_counter() - start) / len(batches)

    rounds = [(seconds(exported), seconds(detector)) for _ in range(_ROUNDS + 1)][1:]
    file, model = (statistics.median(x) for x in zip(*rounds, strict=True))
    return file, model


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="resobj-d2 export",
        description="Write a detector as one file for programs without Detectron2.",
        epilog="docs/export.md says what the file takes and returns.",
    )
    add_import_option(parser)
    add = parser.add_argument
    add_config_option(parser)
    add_weights_option(parser)
    add("--format", required=True, choices=list(FORMATS), help="what to write")
    add("--output", required=True, metavar="FILE", help="file to write")
    add(
        "--raw", action="store_true",
        help="scores and boxes of all anchors, for a runtime with its own selection",
    )  # fmt: skip
    add(
        "--check", nargs="+", default=[], metavar="PATH",
        help="image files, folders or 'patterns' on which file and model must agree",
    )  # fmt: skip
    add("--time", action="store_true", help="with --check: also how long file and model take")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the configuration")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Returns:
        Its exit code: 0, 1 where file and model differ.
    """
    options = _parser().parse_args(arguments)
    chosen = FORMATS[options.format]
    require(options.format)
    images, opts = _images(options.check, options.opts)
    if options.time and not images:
        raise ValueError("--time needs pictures: name some with --check")
    check_path(options.output, options.format)
    opts = with_weights(opts, options.weights)
    if options.format == "onnx":
        opts = [*opts, "MODEL.DEVICE", "cpu"]
    cfg = load_prediction_config(options.config_file, opts, imports=options.imports)
    _refuse_what_stays_outside(cfg)
    predictor = Predictor(cfg)
    detector = exportable(predictor.model, selection=chosen.selection, raw=options.raw)
    metadata = describe(detector, cfg, predictor.class_names)
    write_exported(detector, options.output, format=options.format, metadata=metadata)
    size = os.path.getsize(options.output) / 2**20
    print(f"{os.path.abspath(options.output)}: {options.format}, {size:.1f} MiB")
    if not images:
        return 0
    status = _check(predictor, detector, options.output, images, options.format)
    if options.time:
        file, model = time_file(predictor, detector, options.output, images, format=options.format)
        print(
            f"time for a picture: file {file * 1e3:.4g} ms, model {model * 1e3:.4g} ms, "
            f"{model / file:.2f} times as long"
        )
    return status


def _refuse_what_stays_outside(cfg: CfgNode) -> None:
    """An exported file holds the detector alone."""
    outside = {
        "PREDICT.SCORE_THRESH": cfg.PREDICT.SCORE_THRESH,
        "PREDICT.TILE": cfg.PREDICT.TILE,
        "TEST.AUG.ENABLED": cfg.TEST.AUG.ENABLED,
    }
    given = ", ".join(key for key, value in outside.items() if value)
    if given:
        raise ValueError(f"{given}: not part of an exported file; unset it, or apply it yourself")


def _images(check: Sequence[str], opts: Sequence[str]) -> tuple[list, list[str]]:
    """The pictures, and the options of the config, which may have ended up among them."""
    given = list(check)
    start = next((i for i, x in enumerate(given) if i and _is_key(x)), len(given))
    return find_images(given[:start]) if given else [], [*given[start:], *opts]


def _is_key(text: str) -> bool:
    return text.isupper() and "." in text and not os.path.exists(text)


def _check(
    predictor: Predictor,
    detector: ExportableDetector,
    path: str,
    images: Sequence[str | os.PathLike],
    format: str,
) -> int:
    failed = False
    what = "anchors" if detector.raw else "detections"
    for name, parity in check_file(predictor, detector, path, images, format=format):
        failed |= not parity.holds
        print(
            f"{'same' if parity.holds else 'DIFFERS'}  {name}: {parity.found} {what}, "
            f"{parity.unmatched} without counterpart, boxes {parity.box:.2g} px "
            f"({parity.box_share:.2g} of the limit), scores {parity.score:.2g}"
        )
    if failed:
        print(
            f"error: {path} and the model differ by more than {BOX_TOLERANCE:g} px, or "
            f"{BOX_RELATIVE_TOLERANCE:g} of a box's width or height, or {SCORE_TOLERANCE:g} in "
            "a score",
            file=sys.stderr,
        )
    return _DIFFERS if failed else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
