"""One page that shows what is wrong with a detector.

::

    resobj-d2 report output/RUN
    resobj-d2 report output/FIRST output/SECOND --output both.html
    resobj-d2 report results.json --data annotations/val.json --images photos/

A run has to have a dump (`resobj-d2 analyze dump`), or to be evaluated (`resobj-d2 eval`). A dump
shows more: the anchors' share in missed objects, and the detections at every step.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from resobj_d2.command import CommandParser, run_command
from resobj_d2.process import replacing, start_log

from .judge import judge
from .page import render
from .subject import find_subjects

__all__ = ["main", "write_report"]

_MOST_PICTURES = 200


def write_report(
    paths: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    pictures: int = 24,
    title: str = "",
    dataset: str | None = None,
    data: str | None = None,
    images: str | None = None,
) -> Path:
    """Write the report of one run or more.

    Args:
        paths: folders of dumps, or of runs that have one or were evaluated; COCO results jsons.
        output: the HTML file; its folder is made.
        pictures: how many to show, at most; scaled to 10 MB together or less.
        title: of the page; by default the names of the runs.
        dataset: of a run that was evaluated on several.
        data: ground truth of results jsons, a COCO json or what `data check` reads.
        images: folder of its pictures.

    Returns:
        The file.

    Raises:
        FileNotFoundError: there is nothing to report.
        ValueError: a file is damaged, the runs are of different datasets, or so many that the
            page would have more than 15 MB.
    """
    output = Path(output).expanduser()
    subjects = find_subjects(paths, dataset=dataset, data=data, images=images)
    judgements = [judge(subject) for subject in subjects]
    text = render(judgements, pictures=pictures, title=title)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as file:
        file.write(text)
    return output


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; returns its exit code."""
    parser = CommandParser(prog="resobj-d2 report", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("runs", nargs="+", metavar="SOURCE", help="folder of a run or dump, or a COCO results json")
    add("--output", metavar="FILE", help="the page (default: report.html in the first folder)")
    add("--data", metavar="DATA", help="ground truth of a results json: a COCO json, for example")
    add("--images", metavar="DIR", help="with --data: folder of the pictures (default: near it)")
    add(
        "--pictures",
        type=_count,
        default=24,
        metavar="N",
        help=f"pictures to show, 0 to {_MOST_PICTURES} (default: %(default)s)",
    )
    add("--title", default="", metavar="TEXT", help="of the page (default: the names of the runs)")
    add("--dataset", metavar="NAME", help="of a run that was evaluated on several")
    args = parser.parse_args(argv)
    start_log()
    first = Path(args.runs[0])
    path = write_report(
        args.runs,
        args.output or (first.parent if first.is_file() else first) / "report.html",
        pictures=args.pictures,
        title=args.title,
        dataset=args.dataset,
        data=args.data,
        images=args.images,
    )
    print(path)
    return 0


def _count(text: str) -> int:
    number = int(text)
    if not 0 <= number <= _MOST_PICTURES:
        raise argparse.ArgumentTypeError(f"must be in 0..{_MOST_PICTURES}, got {number}")
    return number


if __name__ == "__main__":
    sys.exit(run_command(main, uses_operators=False))
