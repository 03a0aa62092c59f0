"""One pass of a detector over a dataset, written down for all analyses.

::

    resobj-d2 analyze dump --config-file CONFIG.yaml --weights output/RUN/model_final.pth
    resobj-d2 analyze dump --config-file CONFIG.yaml --detections results.json
    resobj-d2 analyze dump --data annotations.json --detections results.json

It holds the images, the ground truth, the candidates before NMS and the detections; with
``--detections``, a COCO results json of any toolkit, all but the candidates.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Instances

from resobj_d2 import __version__
from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.command import (
    CommandParser,
    add_config_option,
    add_import_option,
    add_weights_option,
    run_command,
    with_weights,
)
from resobj_d2.config import load_config
from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.categories import check_stored_classes
from resobj_d2.data.record import Record
from resobj_d2.data.register import check_available
from resobj_d2.engine import Trainer
from resobj_d2.inspection.target import find_target
from resobj_d2.process import progress_bar, start_log

from .capture import Capture, Pool, best_ious, capture_of
from .dump_file import load_dump
from .dump_writer import DumpWriter, box_columns, check_output, factor_columns, write_dump
from .evaluation_set import EvaluationSet
from .results_json import read_results
from .source import tell_doubts

__all__ = ["dump_detections", "dump_model", "main"]

logger = logging.getLogger(__name__)

DEFAULT_LIMIT = 1000


def dump_model(cfg, output: str | os.PathLike, *, max_candidates: int = DEFAULT_LIMIT) -> Path:
    """Run ``MODEL.WEIGHTS`` on the dataset of ``DATASETS.TEST`` and write a dump.

    Args:
        cfg: of any detector of Detectron2. Candidates are known of ``ResObjDenseDetector`` and of
            ``GeneralizedRCNN`` with box heads; of others there are the detections alone.
        output: folder to make; a dump that is there is replaced.
        max_candidates: of each image and source, the best; those that the detector itself would
            not consider are not among them.

    Returns:
        The folder.

    Raises:
        ValueError: there is not one dataset, or the folder is another's.
        OSError, CheckpointError: the weights cannot be read.
    """
    if max_candidates < 1:
        raise ValueError(f"the number of candidates must be at least 1, got {max_candidates}")
    record = _only_record(cfg.DATASETS.TEST, "DATASETS.TEST")
    check_output(output)
    model = Trainer.build_model(cfg).eval()
    extra = ResObjCheckpointer(model, strict=True, cfg=cfg).load(cfg.MODEL.WEIGHTS)
    check_stored_classes(extra.get("categories"), cfg.DATASETS.TEST)
    capture = capture_of(model, max_candidates)
    if not capture.sources:
        logger.warning(
            "the candidates of a %s are not known: the dump has its detections alone",
            type(model).__name__,
        )
    about = {
        "weights": str(cfg.MODEL.WEIGHTS),
        "config": cfg.dump(),
        "num_steps": _num_steps(capture),
        "max_candidates": max_candidates,
        "package": __version__,
    }
    rows = {identity: row for row, identity in enumerate(record.images.ids)}
    with write_dump(output, record, about, sources=capture.sources) as writer:
        for inputs in _with_bar(Trainer.build_test_loader(cfg, record.name), len(record.images)):
            detections, pools = capture(inputs)
            for x, steps, own in zip(inputs, detections, pools, strict=True):
                row = rows[x["image_id"]]
                for step, instances in enumerate(steps[:-1]):
                    _add_detections(writer, row, instances.to("cpu"), (), step)
                _add_detections(writer, row, steps[-1].to("cpu"), capture.factors)
                _add_candidates(writer, row, x, own, capture)
    return Path(output)


def dump_detections(record: Record, path: str | os.PathLike, output: str | os.PathLike) -> Path:
    """A dump of the detections that another program wrote as a COCO results json.

    Args:
        record: of the dataset.
        path: a list of ``image_id``, ``category_id``, ``bbox`` (x, y, width, height), ``score``,
            with the dataset's ids.
        output: folder to make; a dump that is there is replaced.

    Returns:
        The folder.

    Raises:
        ValueError: the json is no list of detections, or of other images or classes.
        OSError: it cannot be read.
    """
    check_output(output)
    found = read_results(path, record)
    about = {
        "weights": "",
        "config": "",
        "detections": os.path.abspath(path),
        "num_steps": 0,
        "max_candidates": 0,
        "package": __version__,
    }
    order = np.argsort(found.image_index, kind="stable")
    ends = np.cumsum(np.bincount(found.image_index, minlength=len(record.images)))
    with write_dump(output, record, about) as writer:
        for image, part in enumerate(np.split(order, ends[:-1]) if len(ends) else ()):
            writer.add_detections(
                image,
                boxes=found.boxes[part],
                scores=found.scores[part],
                classes=found.classes[part],
                factors={},
            )
    return Path(output)


def _only_record(names: Sequence[str], where: str) -> Record:
    if len(names) != 1:
        raise ValueError(
            f"a dump is of one dataset, and {where} has {len(names)}: name one, as in "
            "DATASETS.TEST \"('NAME',)\""
        )
    check_available(names, where)
    return dataset_record(names[0])


def _num_steps(capture: Capture) -> int:
    return max((int(x.rpartition("_step")[2]) for x in capture.factors if "_step" in x), default=0)


def _with_bar(loader, total: int) -> Iterator[list[dict]]:
    bar = progress_bar(total=total, label="dump", unit="img")
    try:
        for inputs in loader:
            yield inputs
            if bar is not None:
                bar.update(len(inputs))
    finally:
        if bar is not None:
            bar.close()


def _add_detections(
    writer: DumpWriter,
    row: int,
    instances: Instances,
    names: Sequence[str],
    step: int | None = None,
) -> None:
    # Instances carry the factors where there is more than one.
    factors = {
        name: instances.get(f"{name}_score").numpy()
        for name in names
        if instances.has(f"{name}_score")
    }
    writer.add_detections(
        row,
        boxes=instances.pred_boxes.tensor.numpy(),
        scores=instances.scores.numpy(),
        classes=instances.pred_classes.numpy(),
        factors=factors,
        step=step,
    )


def _add_candidates(
    writer: DumpWriter, row: int, inputs: dict, pools: Sequence[Pool], capture: Capture
) -> None:
    objects, crowd = writer.objects_of(row)
    height, width = inputs["image"].shape[-2:]
    scale = torch.tensor(
        [inputs.get("width", width) / width, inputs.get("height", height) / height]
    )
    scale = scale.repeat(2)
    best = np.zeros(len(objects))
    anchors = [pool.anchors for pool in pools if pool.anchors is not None]
    own = torch.from_numpy(objects[~crowd]).float()
    for boxes in anchors:
        known = best_ious(own, boxes.cpu().float() * scale)
        best[~crowd] = np.maximum(best[~crowd], known)
    best[crowd] = np.nan
    if anchors:
        writer.add_anchor_ious(row, best)
    for pool in pools:
        writer.add_candidates(_columns(pool, row, own, scale, capture))


def _columns(
    pool: Pool, row: int, objects: torch.Tensor, scale: torch.Tensor, capture: Capture
) -> dict[str, np.ndarray]:
    count = len(pool.scores)

    def scaled(boxes: torch.Tensor | None) -> np.ndarray:
        if boxes is None:
            return np.full((count, 4), np.nan, dtype=np.float32)
        return (boxes.cpu().float() * scale).numpy()

    def column(values: torch.Tensor | None) -> np.ndarray:
        if values is None:
            return np.full(count, np.nan, dtype=np.float32)
        return values.float().cpu().numpy()

    missing: list[torch.Tensor | None] = [None] * (capture.num_stages - len(pool.stages))
    earlier = missing + list(pool.stages[:-1])
    source = list(capture.sources).index(pool.source)
    priors = pool.priors.cpu().float() * scale
    columns = {
        "image": np.full(count, row, dtype=np.int32),
        "source": np.full(count, source, dtype=np.int8),
        "level": pool.levels.cpu().numpy().astype(np.int8),
        "class": pool.classes.cpu().numpy().astype(np.int32),
        "score": column(pool.scores),
        **box_columns(scaled(pool.stages[-1])),
        **box_columns(priors.numpy(), "prior_"),
    }
    for i, boxes in enumerate(earlier):
        columns |= box_columns(scaled(boxes), f"stage{i + 1}_")
    columns["prior_iou"] = best_ious(priors, objects)
    factors = {name: column(pool.factors.get(name)) for name in capture.factors}
    return {**columns, **factor_columns(factors)}


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; returns its exit code."""
    parser = CommandParser(prog="resobj-d2 analyze dump", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add_config_option(parser, required=False)
    add_weights_option(parser)
    add("--detections", metavar="FILE", help="a COCO results json, in place of a model")
    add("--data", metavar="DATA", help="with --detections: what `data check` takes as a dataset")
    add("--images", metavar="DIR", help="with --data: folder of the pictures (default: near it)")
    add("--output", metavar="DIR", help="folder to make (default: dump in OUTPUT_DIR)")
    add(
        "--candidates",
        type=int,
        default=DEFAULT_LIMIT,
        metavar="N",
        help="the best N before NMS are kept, per image and source (default: %(default)s)",
    )
    add_import_option(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the configuration")
    args = parser.parse_args(argv)
    start_log()
    path = _from_json(args, parser) if args.detections else _from_model(args, parser)
    print(f"{path}\nlook at it with: resobj-d2 report {path}")
    return 0


def _from_model(args, parser: argparse.ArgumentParser) -> Path:
    if not args.config_file or args.data:
        parser.error("give --config-file, or --detections with --config-file or --data")
    opts = with_weights(args.opts, args.weights)
    cfg = load_config(args.config_file, opts, training=False, imports=args.imports)
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("a dump needs trained weights: give --weights FILE")
    output = args.output or os.path.join(cfg.OUTPUT_DIR, "dump")
    return dump_model(cfg, output, max_candidates=args.candidates)


def _from_json(args, parser: argparse.ArgumentParser) -> Path:
    if bool(args.config_file) == bool(args.data):
        parser.error("--detections needs one of --config-file and --data")
    if args.data:
        records = find_target(
            [args.data, *args.opts], images=args.images, imports=args.imports
        ).records
        if len(records) != 1:
            names = ", ".join(records)
            raise ValueError(f"a dump is of one dataset, and {args.data} has {names}")
        (record,) = records.values()
        output = args.output or "output/dump"
    else:
        cfg = load_config(args.config_file, args.opts, training=False, imports=args.imports)
        record = _only_record(cfg.DATASETS.TEST, "DATASETS.TEST")
        output = args.output or os.path.join(cfg.OUTPUT_DIR, "dump")
    path = dump_detections(record, args.detections, output)
    tell_doubts(EvaluationSet.of_dump(load_dump(path)))
    return path


if __name__ == "__main__":
    sys.exit(run_command(main))
