"""AP of one checkpoint over a grid of scoring settings, from one forward pass per image.

For example over the exponent of the confidence (RetinaNet-Conf, Table 5) or over thresholds
(Residual Objectness, Table 1)::

    resobj-d2 analyze sweep --config-file CONFIG.yaml --weights output/RUN/model_final.pth \\
        --vary MODEL.DENSE.QUALITY.ALPHA 0.0 0.2 0.4 0.6

Each ``--vary`` adds an axis. All combinations are evaluated on the same predictions, each with its
own threshold, top-k and NMS.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode

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
from resobj_d2.config.load import merge_overrides
from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.categories import check_stored_classes
from resobj_d2.data.register import check_available
from resobj_d2.engine import Trainer
from resobj_d2.evaluation import build_evaluator
from resobj_d2.modeling import ResObjDenseDetector
from resobj_d2.modeling.postprocess import Scoring

from .tables import write_json

__all__ = ["main", "scoring_of", "sweep", "table"]

_STREAMS = ("MODEL.DENSE.", "MODEL.DENSE.ANCHOR_FREE.")
# Keys that can change without another forward pass.
SCORING_KEYS = (
    "TEST.DETECTIONS_PER_IMAGE",
    "MODEL.DENSE.POSTPROCESS.SCORE_THRESH",
    "MODEL.DENSE.POSTPROCESS.TOPK",
    "MODEL.DENSE.POSTPROCESS.NMS",
    "MODEL.DENSE.POSTPROCESS.NMS_THRESH",
    "MODEL.DENSE.POSTPROCESS.NMS_SIGMA",
    *(
        stream + key
        for stream in _STREAMS
        for key in ("FUSION.EXPONENTS", "FUSION.FLOORS", "QUALITY.ALPHA", "STAGE_SCORES")
    ),
)


def scoring_of(cfg: CfgNode) -> Scoring:
    """The scoring of a model of this configuration, without allocating its weights."""
    with torch.device("meta"):
        return ResObjDenseDetector(cfg).scoring


def sweep(cfg: CfgNode, axes: dict[str, Sequence[str]]) -> list[dict]:
    """Evaluate ``MODEL.WEIGHTS`` on ``DATASETS.TEST`` at every point of the grid.

    Args:
        cfg: config of a ``ResObjDenseDetector``.
        axes: values by key, written as on the command line.

    Returns:
        For each point ``{"settings": {key: value}, "results": {dataset: Detectron2's results}}``.

    Raises:
        ValueError: a key affects more than the scoring, a setting is invalid, or a dataset has no
            annotations.
    """
    unknown = sorted(set(axes) - set(SCORING_KEYS))
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} cannot be varied on one forward pass; only these can: "
            f"{', '.join(SCORING_KEYS)}"
        )
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    scorings, configs = [], []
    for point in points:
        varied = cfg.clone()
        varied.defrost()
        merge_overrides(varied, [x for pair in point.items() for x in pair])
        scorings.append(scoring_of(varied))
        configs.append(varied)  # evaluators follow TEST.DETECTIONS_PER_IMAGE too
    check_available(cfg.DATASETS.TEST, "DATASETS.TEST")
    for name in cfg.DATASETS.TEST:
        if not dataset_record(name).annotated:
            raise ValueError(f"dataset '{name}' has no annotations: nothing can be judged")
    model = Trainer.build_model(cfg).eval()
    extra = ResObjCheckpointer(model, strict=True, cfg=cfg).load(cfg.MODEL.WEIGHTS)
    check_stored_classes(extra.get("categories"), cfg.DATASETS.TEST)
    rows = [{"settings": point, "results": {}} for point in points]
    for dataset in cfg.DATASETS.TEST:
        evaluators = [build_evaluator(varied, dataset, None) for varied in configs]
        for evaluator in evaluators:
            evaluator.reset()
        for inputs in Trainer.build_test_loader(cfg, dataset):
            per_scoring = model.detections_per_scoring(inputs, scorings)
            for evaluator, outputs in zip(evaluators, per_scoring, strict=True):
                evaluator.process(inputs, outputs)
        for row, evaluator in zip(rows, evaluators, strict=True):
            row["results"][dataset] = evaluator.evaluate()
    return rows


def table(rows: Sequence[dict]) -> str:
    """Markdown table: the varied settings, then AP, AP50 and AP75 in percent."""
    keys = list(rows[0]["settings"])
    header = ["dataset", *(key.rpartition(".")[2] for key in keys), "AP", "AP50", "AP75"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in rows:
        for dataset, results in row["results"].items():
            cells = [dataset, *map(str, row["settings"].values())]
            cells += [f"{results['bbox'][name]:.1f}" for name in header[-3:]]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _without_nan(value: object) -> object:
    """Nested values for json, in which numbers that do not exist are None."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; returns its exit code."""
    parser = CommandParser(prog="resobj-d2 analyze sweep", description=__doc__.partition("\n")[0])
    add_config_option(parser)
    add_weights_option(parser)
    add_import_option(parser)
    parser.add_argument(
        "--vary",
        nargs="+",
        action="append",
        required=True,
        metavar=("KEY", "VALUE"),
        help="a key of the configuration and the values to try; several --vary make a grid",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write all results to this file"
    )
    parser.add_argument(
        "opts",
        nargs="*",
        metavar="KEY VALUE",
        help="changes to the configuration; not after the values of --vary",
    )
    parser.add_argument(
        "--opts",
        dest="more",
        nargs="*",
        default=[],
        metavar="KEY VALUE",
        help="the same, where they come last",
    )
    args = parser.parse_intermixed_args(argv)
    axes = {key: values for key, *values in args.vary}
    if len(axes) < len(args.vary):
        parser.error("each key has one --vary, with all of its values")
    empty = [key for key, values in axes.items() if not values]
    if empty:
        parser.error(f"--vary {empty[0]} needs values")
    opts = with_weights([*args.opts, *args.more], args.weights)
    cfg = load_config(args.config_file, opts, training=False, imports=args.imports)
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("a sweep needs trained weights: give --weights FILE, or set MODEL.WEIGHTS")
    rows = sweep(cfg, axes)
    print(table(rows))
    if args.json:
        write_json(args.json, _without_nan(rows))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
