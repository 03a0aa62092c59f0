"""What is in a dataset, what is wrong with it, and whether a model's anchors fit its objects.

::

    resobj-d2 data check annotations/train.json
    resobj-d2 data check retinanet_resobj_t2_R_50_FPN_600_1x DATASETS.REGISTER "[...]" ...

Every picture is opened. The exit status is 0 where nothing is wrong, 1 where something is (with
``--strict``: or is probably), 2 where the dataset could not be read at all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from resobj_d2 import __version__
from resobj_d2.command import CommandParser, add_import_option, run_command
from resobj_d2.process import replacing, start_log

from .check import Report, check_records
from .contact_sheet import write_sheets
from .report import report_json, report_text
from .target import find_target

__all__ = ["exit_status", "main"]

_MOST_WORKERS = 8


def exit_status(report: Report, *, strict: bool = False) -> int:
    """1 where there is a finding of level "error", with ``strict`` also of "warning"; else 0."""
    serious = ("error", "warning") if strict else ("error",)
    return int(any(one.level in serious for one in report.findings))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status.

    Raises:
        ValueError, OSError: what is to be checked cannot be read at all, or nothing be written.
    """
    args = _parser().parse_intermixed_args(argv)
    start_log()
    with _without_notes():
        target = find_target([args.target, *args.opts], images=args.images, imports=args.imports)
        report = check_records(target.records, target.roles, cfg=target.cfg, workers=args.workers)
    print(report_text(report))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"version": __version__, "checked": args.target, **report_json(report)}
        with replacing(args.json) as file:
            file.write(json.dumps(content, indent=1))
    if args.browse:
        for record in target.records.values():
            for path in write_sheets(record, args.output, args.browse):
                print(path)
    return exit_status(report, strict=args.strict)


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """No warnings about the data while they are read: the report has them, with their examples."""
    notes = logging.getLogger("resobj_d2.data.notes")
    before = notes.level
    notes.setLevel(logging.ERROR)
    try:
        yield
    finally:
        notes.setLevel(before)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="resobj-d2 data check",
        description="Open every picture of a dataset, look for mistakes in its boxes, count its "
        "objects; with a configuration also compare its anchors with them.",
        epilog="Exit status: 0 nothing serious, 1 findings of level error (with --strict also "
        "warning), 2 the dataset cannot be read at all.",
    )
    parser.add_argument(
        "target",
        metavar="DATA",
        help="a registered dataset, a configuration (yaml or name; its TRAIN and TEST are "
        "checked), a COCO json, a csv, YOLO's data.yaml, a folder of VOC or YOLO, or format=... "
        "KEY=VALUE ... as in DATASETS.REGISTER",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the configuration")
    add_import_option(parser)
    parser.add_argument(
        "--images", metavar="DIR", help="folder of the pictures of a json or csv (default: near it)"
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        default=min(os.cpu_count() or 1, _MOST_WORKERS),
        metavar="N",
        help="threads that open pictures (default: one for each CPU, at most 8)",
    )
    parser.add_argument("--strict", action="store_true", help="warnings count as errors do")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to FILE")
    parser.add_argument(
        "--browse",
        type=_positive,
        metavar="N",
        help="also draw N pictures of each dataset with their boxes, 25 on a sheet",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/data_check"),
        metavar="DIR",
        help="folder of the sheets (default: %(default)s)",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


if __name__ == "__main__":
    sys.exit(run_command(main))
