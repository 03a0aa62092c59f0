"""Converting data sets between formats.

    resobj-d2 data convert format=voc root=VOCdevkit/VOC2012 split=train --to yolo --output out

The source is an entry of ``DATASETS.REGISTER`` as KEY=VALUE, or the name of a registered data set.
What is written is the checked record: mended where registration mends, with the same warnings. It
prints the entry that registers the result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from resobj_d2.command import run_command
from resobj_d2.process import parse_yaml, start_log

from .entries import parse_entry
from .record import Record
from .writers import PICTURES, WRITERS

__all__ = ["convert", "main", "parse_source"]


def convert(
    source: str | dict, *, to: str, output: Path, split: str = "train", pictures: str = "link"
) -> dict:
    """Write a data set in another format.

    Args:
        source: name of a registered data set, or an entry of ``DATASETS.REGISTER``.
        to: one of :data:`.writers.WRITERS`.
        output: folder, which may hold other splits of the set.
        split: what the result is called there.
        pictures: one of :data:`.writers.PICTURES`.

    Returns:
        The entry that registers the result, without its name.

    Raises:
        ValueError, FileNotFoundError: the source cannot be registered, or not be written so that it
            is read back whole.
        FileExistsError: the split is there already.
    """
    from .catalog import dataset_record
    from .register import check_available, register_datasets
    from .writing import join_images_of_a_file

    if isinstance(source, dict):
        source = {"name": "the source", **source}
        register_datasets([source])
        source = str(source["name"])
    check_available([source], "the source")
    output.mkdir(parents=True, exist_ok=True)
    record = dataset_record(source)
    if to != "coco":  # the others know a picture by its file
        record = join_images_of_a_file(record)
    entry = WRITERS[to](record, output.absolute(), split, pictures)
    _check_written(record, entry, f"{record.name} as {to}")
    return entry


def _check_written(record: Record, entry: dict, name: str) -> None:
    """Read the result, and refuse it where something is missing."""
    from .open_entry import open_entry

    again = open_entry(parse_entry({"name": name, **entry}, "the result")).read()
    crowd = record.annotations.crowd.sum() - again.annotations.crowd.sum()
    pairs = {
        "pictures": (len(record.images), len(again.images)),
        "boxes": (len(record.annotations) - int(crowd), len(again.annotations)),
        "class names": (record.class_names, again.class_names),
    }
    for kind, (before, after) in pairs.items():
        if before != after:
            raise ValueError(
                f"dataset '{record.name}' has {kind} {before}, but what was written is read as "
                f"{after}: do not use {again.source}"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status.

    Raises:
        ValueError, OSError: as :func:`convert`.
    """
    parser = argparse.ArgumentParser(
        prog="resobj-d2 data convert",
        description="Convert a data set between COCO json, Pascal VOC, YOLO and CSV.",
        epilog="Example: %(prog)s format=voc root=VOC2012 split=train --to yolo --output out",
    )
    parser.add_argument(
        "source",
        nargs="+",
        metavar="KEY=VALUE",
        help="an entry of DATASETS.REGISTER: format=coco json=... images=...; or the name of one "
        "of Detectron2's data sets",
    )
    parser.add_argument("--to", required=True, choices=list(WRITERS), help="the format to write")
    parser.add_argument("--output", required=True, type=Path, help="the folder to write to")
    parser.add_argument("--split", help="what to call it there (default: the source's split)")
    parser.add_argument(
        "--pictures",
        choices=PICTURES,
        default="link",
        help="link the pictures (default), copy them, or leave them where they are",
    )
    args = parser.parse_args(argv)
    source = parse_source(args.source)
    split = args.split or (source.get("split") if isinstance(source, dict) else None) or "train"
    start_log()
    entry = convert(source, to=args.to, output=args.output, split=split, pictures=args.pictures)
    entry = {"name": f"{args.output.absolute().name}_{split}", **entry}
    print(yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=10**6), end="")
    return 0


def parse_source(words: Sequence[str]) -> str | dict:
    """Words of a command line: a name, or an entry of ``DATASETS.REGISTER`` as KEY=VALUE ...

    Raises:
        ValueError: they are neither.
    """
    if len(words) == 1 and "=" not in words[0]:
        return words[0]
    entry = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign:
            raise ValueError(f"the source is a name or KEY=VALUE ..., got {word!r} among others")
        # Lists and numbers as in a config; everything else is text.
        entry[key] = parse_yaml(value, key) if value[:1] == "[" or value.isdecimal() else value
    return entry


if __name__ == "__main__":
    sys.exit(run_command(main, uses_operators=False))
