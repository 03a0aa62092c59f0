"""Where an analysis of detections takes them from: a run, a dump, or a COCO results json."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import replace
from pathlib import Path

from resobj_d2.config import load_config
from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.coco_json import read_coco_json
from resobj_d2.data.record import Record
from resobj_d2.data.register import check_available
from resobj_d2.inspection.target import find_target, picture_folder

from .doubts import doubts
from .dump_file import load_dump
from .evaluation_set import EvaluationSet
from .results_json import read_entries

__all__ = ["add_iou_option", "add_source_options", "load_source", "tell_doubts"]

logger = logging.getLogger(__name__)

RESULTS = "coco_instances_results.json"


def add_iou_option(parser: argparse.ArgumentParser) -> None:
    """``--iou`` of a command that matches detections with objects."""
    parser.add_argument(
        "--iou", type=float, default=0.5, metavar="IOU", help="of a match (default 0.5)"
    )


def add_source_options(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """The arguments that :func:`load_source` takes, and ``--json``.

    Args:
        parser: of the command.
        several: take one source or more, as ``args.sources``, instead of one, as ``args.source``.
    """
    about = "the folder of a run that was evaluated, a dump, or a COCO results json"
    if several:
        parser.add_argument("sources", nargs="+", metavar="SOURCE", help=about)
    else:
        parser.add_argument("source", metavar="SOURCE", help=about)
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="ground truth of a results json: a COCO json, another file or folder that `resobj-d2 "
        "data check` reads, or a registered name",
    )
    parser.add_argument(
        "--images", metavar="DIR", help="pictures of a COCO json (default: near it)"
    )
    parser.add_argument("--dataset", metavar="NAME", help="of a run, or of --data, with several")
    parser.add_argument(
        "--limit",
        type=_positive,
        metavar="N",
        help="best detections of an image and class that count (default: all; COCO's own is 100)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all tables to it")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def load_source(source: str | os.PathLike, args: argparse.Namespace) -> EvaluationSet:
    """Ground truth and detections of one source, with the options of the command.

    What about them was probably not meant is a warning.

    Raises:
        FileNotFoundError: there is no such run or file, or the run was not evaluated.
        ValueError: the files do not fit, or a choice is missing.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path} is neither a folder of a run or dump nor a results json")
    name = path.stem if path.is_file() else path.absolute().name
    if path.is_dir() and not list(path.glob(f"inference/*/{RESULTS}")):
        if (path / "about.json").is_file() or (path / "dump" / "about.json").is_file():
            dump = load_dump(path)
            _refuse_other_truth(path, str(dump.about.get("dataset")), args)
            _refuse_unannotated(dump.about.get("annotated", True), str(dump.about.get("dataset")))
            return tell_doubts(EvaluationSet.of_dump(dump, name=name, limit=args.limit))
    if path.is_dir():
        record, results = _run_files(path, args.data, args.images, args.dataset)
    elif not args.data:
        raise ValueError(f"{path}: say with --data what the ground truth is, such as a COCO json")
    else:
        record, results = _truth(args.data, args.images, args.dataset), path
    _refuse_unannotated(record.annotated, record.name)
    entries = read_entries(results)
    return tell_doubts(EvaluationSet.of(record, entries, name=name, limit=args.limit))


def tell_doubts(data: EvaluationSet) -> EvaluationSet:
    """The same detections, after a warning for each of their :func:`.doubts`."""
    for doubt in doubts(data):
        logger.warning("%s: %s", data.name, doubt)
    return data


def _refuse_other_truth(path: Path, dataset: str, args: argparse.Namespace) -> None:
    """A dump has its ground truth with it."""
    if args.data or args.images:
        raise ValueError(
            f"{path} is a dump, which has its own ground truth: leave out --data and --images"
        )
    if args.dataset not in (None, dataset):
        raise ValueError(f"{path} is a dump of {dataset}, not of {args.dataset}")


def _refuse_unannotated(annotated: object, dataset: str) -> None:
    if not annotated:
        raise ValueError(f"dataset '{dataset}' has no annotations: nothing can be judged")


def _run_files(
    folder: Path, data: str | None, images: str | None, dataset: str | None
) -> tuple[Record, Path]:
    """Ground truth and results of a run."""
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a run: it has no config.yaml")
    found = sorted(folder.glob(f"inference/*/{RESULTS}"))
    names = [file.parent.name for file in found]
    if not found:
        raise FileNotFoundError(
            f"{folder} has no results: evaluate it first, with resobj-d2 eval --config-file "
            f"{folder / 'config.yaml'} --weights {folder / 'model_final.pth'}"
        )
    name = _one_of(names, dataset, f"{folder} has results on")
    results = found[names.index(name)]
    if data:
        return _truth(data, images, name, of_run=True), results
    if images:
        raise ValueError("--images goes with --data: the pictures of a run are known")
    try:
        # Registers this dataset; the run's others may have stayed elsewhere.
        load_config(str(folder / "config.yaml"), ["DATASETS.TEST", str((name,))], training=False)
        check_available([name], "the run's DATASETS.TEST")
    except (ValueError, OSError) as error:  # the run of an older version, or data that have moved
        text = str(error).rstrip(".?")
        raise ValueError(f"{text}; --data says where the ground truth is instead") from error
    return dataset_record(name), results


def _one_of(names: list[str], chosen: str | None, what: str) -> str:
    if chosen is None and len(names) == 1:
        return names[0]
    if chosen not in names:
        raise ValueError(f"{what} {', '.join(names)}: choose one with --dataset")
    return chosen


def _truth(word: str, images: str | None, dataset: str | None, *, of_run: bool = False) -> Record:
    """What --data names; with one dataset the name of a run's need not be that of this one."""
    path = Path(word).expanduser()
    if path.suffix.lower() == ".json" and path.is_file():
        if dataset and not of_run:
            raise ValueError(f"--data {word} is one dataset: leave out --dataset")
        record = read_coco_json(path, path.stem, images or "", ours=False)
        # No picture is needed to judge boxes.
        folder = None if images else picture_folder(path, record.images.files)
        if folder is None:
            return record
        table = replace(record.images, files=[str(folder / x) for x in record.images.files])
        return replace(record, images=table)
    records = find_target([word], images=images).records
    names = list(records)
    chosen = None if of_run and len(names) == 1 else dataset
    return records[_one_of(names, chosen, f"--data {word} has the datasets")]
