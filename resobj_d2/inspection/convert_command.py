"""Writing a dataset in another format.

    resobj-d2 data convert annotations/val.json --to yolo --output out
    resobj-d2 data convert format=voc root=VOCdevkit/VOC2012 split=train --to yolo --output out

The source is found as `resobj-d2 data check` finds it. The command prints the entry of
``DATASETS.REGISTER`` that registers the result.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from resobj_d2.command import CommandParser, run_command
from resobj_d2.data.convert import convert
from resobj_d2.data.record import Record
from resobj_d2.data.writers import PICTURES, WRITERS
from resobj_d2.process import start_log

from .target import Target, find_target

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status.

    Raises:
        ValueError, OSError: as :func:`resobj_d2.data.convert.convert`.
    """
    args = _parser().parse_intermixed_args(argv)
    start_log()
    record = _chosen(find_target(args.source, images=args.images, split=args.split), args.split)
    split = args.split or re.sub(r"[^\w.-]+", "_", record.name)
    entry = convert(record, to=args.to, output=args.output, split=split, pictures=args.pictures)
    entry = {"name": f"{args.output.absolute().name}_{split}", **entry}
    style = {"default_flow_style": True, "sort_keys": False, "allow_unicode": True}
    print("The entry of DATASETS.REGISTER, for a configuration and for the command line:")
    print(f"  - {yaml.safe_dump(entry, width=10**6, **style)}", end="")
    print(f"  DATASETS.REGISTER {_quoted(str([entry]))}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="resobj-d2 data convert",
        description="Convert a dataset between COCO json, Pascal VOC, YOLO and CSV.",
        epilog="Example: %(prog)s format=voc root=VOC2012 split=train --to yolo --output out",
    )
    parser.add_argument(
        "source",
        nargs="+",
        metavar="DATA",
        help="a json, csv, data.yaml or folder, a registered name, or an entry of "
        "DATASETS.REGISTER as KEY=VALUE: format=coco json=... images=...",
    )
    parser.add_argument("--to", required=True, choices=list(WRITERS), help="the format to write")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="the folder to write to"
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="what to call it there (default: the source's split, else the name of its file); of a "
        "source with several splits the one to convert",
    )
    parser.add_argument("--images", metavar="DIR", help="pictures of a json or csv")
    parser.add_argument(
        "--pictures",
        choices=PICTURES,
        default="link",
        help="link the pictures (default), copy them, or leave them where they are",
    )
    return parser


def _chosen(target: Target, split: str | None) -> Record:
    """The one dataset of a source, or the one of the split."""
    if len(target.records) == 1:
        return next(iter(target.records.values()))
    if split not in target.records:
        raise ValueError(
            f"the source has several datasets, {', '.join(target.records)}: choose one with --split"
        )
    return target.records[split]


def _quoted(text: str) -> str:
    """For a shell; readable where that is possible."""
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'


if __name__ == "__main__":
    sys.exit(run_command(main, uses_operators=False))
