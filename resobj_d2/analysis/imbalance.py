"""What training a detector is about: how much of its loss and gradient easy background owns.

::

    resobj-d2 analyze imbalance --config-file output/RUN/config.yaml --weights ...

The weights are those of a checkpoint, and the images those of ``DATASETS.TEST``. For every loss
that tells objects from background: how many anchors are positive, negative and ignored, level by
level, and which part of the loss and of its gradient they have.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
from resobj_d2.data.augmentation import build_size_augmentations
from resobj_d2.data.categories import check_stored_classes
from resobj_d2.data.mapper import PictureMapper
from resobj_d2.data.register import check_available
from resobj_d2.data.train_loader import local_randomness
from resobj_d2.engine import Trainer
from resobj_d2.engine.validation import measuring, validation_records
from resobj_d2.modeling import ResObjDenseDetector
from resobj_d2.modeling.branches.objectness import ObjectnessPrediction
from resobj_d2.modeling.stream import DenseStream
from resobj_d2.process import progress_bar, start_log
from resobj_d2.structures import GroundTruth, LevelMaps, StreamOutput, Targets

from .imbalance_roi import add_two_stage_detector
from .imbalance_rpn import add_proposal_network
from .imbalance_tables import Imbalance
from .imbalance_terms import Term, add_levels, add_term, class_sizes, objectness_terms
from .tables import markdown, write_json

__all__ = ["main", "measure_imbalance"]

_SEED = 0  # of what is sampled


def measure_imbalance(
    cfg, *, max_images: int | None = None, easy: float = 0.1, bins: int = 20
) -> Imbalance:
    """Measure ``MODEL.WEIGHTS`` on the annotated images of ``DATASETS.TEST``, one at a time.

    Args:
        cfg: of a ``ResObjDenseDetector``, a ``GeneralizedRCNN`` or a ``ProposalNetwork``.
        max_images: measure so many, evenly chosen; None for all.
        easy: probability of an object below which a negative is easy.
        bins: of the histograms.

    Raises:
        ValueError: it is another model, or no image is annotated.
    """
    if cfg.MODEL.META_ARCHITECTURE not in _ADD:
        raise ValueError(
            f"the imbalance is measured of {', '.join(_ADD)}, and this is a "
            f"{cfg.MODEL.META_ARCHITECTURE}"
        )
    check_available(cfg.DATASETS.TEST, "DATASETS.TEST")
    records = validation_records(cfg)
    if not records:
        raise ValueError("no image of DATASETS.TEST is annotated: there is nothing to measure")
    if max_images is not None and max_images < len(records):
        rows = np.linspace(0, len(records) - 1, max_images).round().astype(int)
        records = [records[row] for row in rows]
    model = Trainer.build_model(cfg)
    extra = ResObjCheckpointer(model, strict=True, cfg=cfg).load(cfg.MODEL.WEIGHTS)
    check_stored_classes(extra.get("categories"), cfg.DATASETS.TEST)
    mapper = PictureMapper(cfg, True, augmentations=build_size_augmentations(cfg, is_train=False))
    result = Imbalance(easy=easy, bins=bins)
    with measuring(model) as restore, local_randomness(_SEED):
        for record in _with_bar(records):
            restore()
            _ADD[cfg.MODEL.META_ARCHITECTURE](result, model, mapper(record))
    return result


def _with_bar(records: Sequence[dict]) -> Iterator[dict]:
    bar = progress_bar(total=len(records), label="imbalance", unit="img")
    try:
        for record in records:
            yield record
            if bar is not None:
                bar.update(1)
    finally:
        if bar is not None:
            bar.close()


def add_dense_detector(result: Imbalance, model: ResObjDenseDetector, inputs: dict) -> None:
    """Add one image.

    Args:
        result: is changed.
        model: in training mode.
        inputs: as the model trains on it.
    """
    outputs, ground_truth = model.training_inputs([inputs])
    result.images += 1
    for name, stream in model.streams.items():
        _add_stream(result, name, stream, outputs[name], ground_truth)


_ADD: dict[str, Callable[[Imbalance, Any, dict], None]] = {
    "ResObjDenseDetector": add_dense_detector,
    "GeneralizedRCNN": add_two_stage_detector,
    "ProposalNetwork": add_proposal_network,
}


def _add_stream(
    result: Imbalance,
    name: str,
    stream: DenseStream,
    output: StreamOutput,
    ground_truth: GroundTruth,
) -> None:
    output = _with_leaves(output)
    with torch.enable_grad():
        losses, _ = stream.losses(output, ground_truth)
    for index in range(len(stream.stages)):
        targets = stream.assign(index, output, ground_truth)
        add_levels(result, (name, index), targets, output.priors.anchors_per_level)
        for term in _terms(stream, index, output, targets):
            if term.loss in losses:
                add_term(result, name, term, losses[term.loss], targets)


@torch.no_grad()
def _terms(
    stream: DenseStream, index: int, output: StreamOutput, targets: Targets
) -> Iterator[Term]:
    suffix = f"_stage{index}" if index else ""
    stage, prediction = stream.stages[index], output.stages[index]
    if stage.cls_loss is not None:
        maps = prediction.cls
        probability = torch.sigmoid(
            stream.stages[0].cls_loss.sigmoid_logits(maps).flatten().float()
        )
        per_anchor = None
        if stage.cls_loss.ranks_anchors and not stage.cls_loss.takes_quality:
            per_anchor = stage.cls_loss.per_anchor(maps.flatten(), stage.class_labels(targets))
        yield Term(
            loss=f"loss_cls{suffix}",
            value=f"cls{suffix}",
            leaves=maps.levels,
            sizes=partial(class_sizes, channels=maps.channels),
            probability=probability.amax(dim=-1),
            per_anchor=per_anchor,
        )
    branch = stream.branches["objectness"] if "objectness" in stream.branches else None
    predicted = output.branches.get("objectness")
    if not isinstance(predicted, ObjectnessPrediction):
        return
    yield from objectness_terms(
        branch,
        predicted,
        targets.binary_labels,
        output.priors.anchors_per_level,
        suffix=suffix,
    )


def _with_leaves(output: StreamOutput) -> StreamOutput:
    """The same predictions, to which gradients flow; what stages share stays shared."""
    known: dict[int, object] = {}

    def leaf(value):
        if id(value) in known:
            return known[id(value)]
        if isinstance(value, Tensor):
            new = value.detach().requires_grad_(value.is_floating_point())
        elif isinstance(value, LevelMaps):
            new = LevelMaps([leaf(x) for x in value.levels], value.channels)
        elif isinstance(value, ObjectnessPrediction):
            new = ObjectnessPrediction(leaf(value.logits), leaf(value.residuals))
        else:
            new = value
        known[id(value)] = new
        return new

    stages = [dataclasses.replace(x, cls=leaf(x.cls), box=leaf(x.box)) for x in output.stages]
    branches = {name: leaf(value) for name, value in output.branches.items()}
    return StreamOutput(priors=output.priors, stages=stages, branches=branches)


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; returns its exit code."""
    parser = CommandParser(
        prog="resobj-d2 analyze imbalance", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add_config_option(parser)
    add_weights_option(parser)
    add("--images", type=int, metavar="N", help="measure so many, evenly chosen (default: all)")
    add(
        "--easy",
        type=float,
        default=0.1,
        metavar="SCORE",
        help="probability below which a negative is easy (0.1)",
    )
    add("--bins", type=int, default=20, metavar="N", help="of the histograms (default 20)")
    add("--plot", type=Path, metavar="FILE", help="draw it to .png, .svg or .pdf")
    add("--json", type=Path, metavar="FILE", help="also write all tables to it")
    add_import_option(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the configuration")
    args = parser.parse_args(argv)
    if args.bins < 1 or (args.images is not None and args.images < 1):
        parser.error("--bins and --images must be at least 1")
    if args.plot and args.plot.suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"--plot {args.plot}: the ending must be .png, .svg or .pdf")
    start_log()
    opts = with_weights(args.opts, args.weights)
    cfg = load_config(args.config_file, opts, training=False, imports=args.imports)
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("the imbalance is that of trained weights: give --weights FILE")
    found = measure_imbalance(cfg, max_images=args.images, easy=args.easy, bins=args.bins)
    tables = {
        "levels": found.level_table(),
        "shares": found.share_table(),
        "histograms": found.histogram_table(),
    }
    what = "Anchors and RoIs" if len(found.streams) > 1 and "roi" in found.streams else "Anchors"
    print(f"{what} of an image, mean of {found.images}; level -1 is all\n")
    print(markdown(tables["levels"]))
    print(f"\nWho owns the losses; easy is a probability below {args.easy:g}\n")
    print(markdown(tables["shares"]))
    if args.plot:
        from .imbalance_plot import plot_imbalance

        plot_imbalance(found, args.plot)
    if args.json:
        write_json(args.json, tables)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
