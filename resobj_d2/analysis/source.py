"""Where an analysis of detections takes them from: a run's folder, or a COCO results json."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from resobj_d2.config import load_config
from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.coco_json import read_coco_json
from resobj_d2.data.record import Record
from resobj_d2.data.register import check_available
from resobj_d2.inspection.target import find_target

from .evaluation_set import EvaluationSet

__all__ = ["add_source_options", "load_source", "read_results"]

RESULTS = "coco_instances_results.json"


def add_source_options(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """The arguments that :func:`load_source` takes, and ``--json``.

    Args:
        parser: of the command.
        several: take one source or more, as ``args.sources``, instead of one, as ``args.source``.
    """
    about = "the folder of a run that was evaluated, or detections as a COCO results json"
    if several:
        parser.add_argument("sources", nargs="+", metavar="SOURCE", help=about)
    else:
        parser.add_argument("source", metavar="SOURCE", help=about)
    parser.add_argument(
        "--truth",
        metavar="DATA",
        help="ground truth of a results json: a COCO json, another file or folder that `resobj-d2 "
        "data check` reads, or a registered name",
    )
    parser.add_argument("--images", metavar="DIR", help="pictures of a COCO json")
    parser.add_argument("--dataset", metavar="NAME", help="of a run, or truth, with several")
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

    Raises:
        FileNotFoundError: there is no such run or file, or the run was not evaluated.
        ValueError: the files do not fit, or a choice is missing.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        record, results = _run_files(path, args.truth, args.images, args.dataset)
    elif not path.is_file():
        raise FileNotFoundError(f"{path} is neither the folder of a run nor a results json")
    elif not args.truth:
        raise ValueError(f"{path}: say with --truth what the ground truth is, such as a COCO json")
    else:
        record, results = _truth(args.truth, args.images, args.dataset), path
    if not record.annotated:
        raise ValueError(f"dataset '{record.name}' has no annotations: nothing can be judged")
    name = path.absolute().name if path.is_dir() else path.stem
    return EvaluationSet.of(record, read_results(results), name=name, limit=args.limit)


def _run_files(
    folder: Path, truth: str | None, images: str | None, dataset: str | None
) -> tuple[Record, Path]:
    """Ground truth and results of a run."""
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a run: it has no config.yaml")
    found = sorted(folder.glob(f"inference/*/{RESULTS}"))
    names = [file.parent.name for file in found]
    if not found:
        raise FileNotFoundError(
            f"{folder} has no results: evaluate it first, with resobj-d2 eval --config-file "
            f"{folder / 'config.yaml'} MODEL.WEIGHTS {folder / 'model_final.pth'}"
        )
    name = _one_of(names, dataset, f"{folder} has results on")
    results = found[names.index(name)]
    if truth:
        return _truth(truth, images, None), results
    load_config(str(folder / "config.yaml"), training=False)  # registers the data sets
    check_available([name], "the run's DATASETS.TEST")
    return dataset_record(name), results


def _one_of(names: list[str], chosen: str | None, what: str) -> str:
    if chosen is None and len(names) == 1:
        return names[0]
    if chosen not in names:
        raise ValueError(f"{what} {', '.join(names)}: choose one with --dataset")
    return chosen


def _truth(word: str, images: str | None, dataset: str | None) -> Record:
    path = Path(word).expanduser()
    if path.suffix.lower() == ".json" and path.is_file():
        # No picture is needed to judge boxes.
        return read_coco_json(path, path.stem, images or "", ours=False)
    records = find_target([word], images=images).records
    return records[_one_of(list(records), dataset, f"--truth {word} has the data sets")]


def read_results(path: Path) -> list[dict]:
    """The entries of a COCO results json.

    Raises:
        ValueError: it is not valid json, or not a list.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid json: {error}") from None
    if not isinstance(content, list):
        raise ValueError(f"{path}: a COCO results json is a list of detections, this is not one")
    return content
