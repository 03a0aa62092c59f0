"""Average recall of a two-stage detector's proposals at each step of its objectness.

::

    resobj-d2 analyze proposals --config-file CONFIG.yaml --weights output/RUN/model_final.pth

With ``--write FOLDER`` the proposals of each dataset of ``DATASETS.TEST`` are also written there,
as ``FOLDER/<dataset>.pkl``, for ``DATASETS.PROPOSAL_FILES_TRAIN`` and ``_TEST`` of a Fast R-CNN.

COCO's AR: the mean over IoU thresholds .5, .55, ... .95 of the fraction of objects found by the
top-ranked proposals of their image, where a proposal finds one object. Classes are ignored. ARs,
ARm and ARl count objects below 32^2 pixels, up to 96^2 and above.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

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
from resobj_d2.data.register import check_available
from resobj_d2.engine import Trainer
from resobj_d2.evaluation.backend import CocoBackend, load_backend
from resobj_d2.evaluation.ground_truth import ground_truth_index
from resobj_d2.process import replacing

__all__ = ["average_recall", "evaluate_proposals", "main", "table"]

_AREAS = {"AR": "all", "ARs": "small", "ARm": "medium", "ARl": "large"}


def average_recall(
    backend: CocoBackend, ground_truth, proposals: Sequence[dict], limits: Sequence[int]
) -> dict[str, float]:
    """COCO's class-agnostic average recall in percent.

    Args:
        backend: the implementation that built ``ground_truth``.
        ground_truth: an index from ``backend.index``; images without proposals count too.
        proposals: ``image_id``, ``bbox`` and ``score``, as in a COCO results json.
        limits: numbers of top-ranked proposals per image to evaluate.

    Returns:
        ``{"AR@100": ..., "ARs@100": ...}`` for each limit and each range of areas; NaN if no object
        has such an area.
    """
    if not proposals:
        raise ValueError("there are no proposals")
    # COCO's code looks proposals up under the classes of the ground truth, even though it then
    # merges all classes.
    category = ground_truth.getCatIds()[0]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints progress
        detections = ground_truth.loadRes([{**x, "category_id": category} for x in proposals])
        evaluation = backend.new_evaluation(ground_truth, detections, "bbox")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = sorted(limits)
        evaluation.evaluate()
        evaluation.accumulate()
    recall = np.asarray(evaluation.eval["recall"])  # IoU thresholds, 1, areas, limits; -1 for none
    labels = list(evaluation.params.areaRngLbl)
    results = {}
    for k, limit in enumerate(sorted(limits)):
        for name, area in _AREAS.items():
            values = recall[:, 0, labels.index(area), k]
            results[f"{name}@{limit}"] = 100 * values.mean() if (values > -1).all() else np.nan
    return {name: float(value) for name, value in results.items()}


def evaluate_proposals(
    cfg, *, limits: Sequence[int] = (100, 300, 1000), folder: Path | None = None
) -> list[dict]:
    """Average recall of ``MODEL.WEIGHTS`` on ``DATASETS.TEST``.

    Args:
        cfg: config of a ``GeneralizedRCNN`` or ``ProposalNetwork`` of Detectron2. If its RPN
            refines the objectness, proposals are ranked once per step.
        limits: numbers of proposals per image.
        folder: where to write the proposals of the last step, or None.

    Returns:
        ``{"dataset": name, "step": t, "results": average_recall(...)}`` per dataset and step.

    Raises:
        ValueError: the model has no proposals, or too few for the limits.
    """
    if min(limits) < 1 or max(limits) > cfg.MODEL.RPN.POST_NMS_TOPK_TEST:
        raise ValueError(
            f"the numbers of proposals must be from 1 to MODEL.RPN.POST_NMS_TOPK_TEST "
            f"({cfg.MODEL.RPN.POST_NMS_TOPK_TEST}), got {list(limits)}"
        )
    check_available(cfg.DATASETS.TEST, "DATASETS.TEST")
    model = Trainer.build_model(cfg).eval()
    if getattr(model, "proposal_generator", None) is None:
        raise ValueError(
            f"a {cfg.MODEL.META_ARCHITECTURE} makes no proposals: those with an RPN do, as "
            "MODEL.META_ARCHITECTURE GeneralizedRCNN and ProposalNetwork"
        )
    ResObjCheckpointer(model, strict=True, cfg=cfg).load(cfg.MODEL.WEIGHTS)
    backend = load_backend(cfg.TEST.COCO_BACKEND)
    rows = []
    for dataset in cfg.DATASETS.TEST:
        ground_truth, image_ids = ground_truth_index(dataset, backend)
        by_step: dict[int, list[dict]] = {}
        last: dict[str, list] = {"ids": [], "boxes": [], "objectness_logits": []}
        for inputs in Trainer.build_test_loader(cfg, dataset):
            for step, proposals in enumerate(proposals_per_step(model, inputs)):
                for x, instances in zip(inputs, proposals, strict=True):
                    entries = _coco_entries(instances, image_ids[x["image_id"]])
                    by_step.setdefault(step, []).extend(entries)
            if folder is not None:
                _append(last, inputs, proposals)
        if folder is not None:
            _write(last, folder / f"{dataset}.pkl")
        for step, proposals in by_step.items():
            results = average_recall(backend, ground_truth, proposals, limits)
            rows.append({"dataset": dataset, "step": step, "results": results})
    return rows


def _append(columns: dict[str, list], inputs: list[dict], proposals: list[Instances]) -> None:
    """Add the images of a batch to a file's columns."""
    for x, found in zip(inputs, proposals, strict=True):
        columns["ids"].append(x["image_id"])
        columns["boxes"].append(found.proposal_boxes.tensor.cpu().numpy())
        columns["objectness_logits"].append(found.objectness_logits.cpu().numpy())


def _write(columns: dict[str, list], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**columns, "bbox_mode": BoxMode.XYXY_ABS.value}
    with replacing(path, binary=True) as file:
        pickle.dump(content, file, protocol=2)


@torch.no_grad()
def proposals_per_step(model: nn.Module, batched_inputs: list[dict]) -> list[list[Instances]]:
    """Proposals in output pixels, as ranked at each step.

    Args:
        model: Detectron2's ``GeneralizedRCNN`` or ``ProposalNetwork``.

    Returns:
        T + 1 lists, or one for an RPN without steps, each with the ``Instances`` of every image.
    """
    images = model.preprocess_image(batched_inputs)
    features = model.backbone(images.tensor)
    rpn = model.proposal_generator
    if hasattr(rpn, "proposals_per_step"):
        steps = rpn.proposals_per_step(images, features)
    else:
        steps = [rpn(images, features)[0]]
    return [
        [
            detector_postprocess(
                # Rescaling changes the boxes in place, and steps may share them.
                Instances(
                    proposals.image_size,
                    proposal_boxes=Boxes(proposals.proposal_boxes.tensor.clone()),
                    objectness_logits=proposals.objectness_logits,
                ),
                x.get("height", proposals.image_size[0]),
                x.get("width", proposals.image_size[1]),
            )
            for proposals, x in zip(step, batched_inputs, strict=True)
        ]
        for step in steps
    ]


def _coco_entries(proposals: Instances, image_id: int) -> list[dict]:
    boxes = proposals.proposal_boxes.tensor.cpu()
    boxes = BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    scores = proposals.objectness_logits.tolist()
    return [
        {"image_id": image_id, "bbox": box, "score": score}
        for box, score in zip(boxes, scores, strict=True)
    ]


def table(rows: Sequence[dict]) -> str:
    """Markdown table: AR in percent by dataset and step."""
    names = [n for n in rows[0]["results"] if n.startswith("AR@")]
    last = names[-1].partition("@")[2]
    names += [f"{area}@{last}" for area in list(_AREAS)[1:]]
    lines = ["| " + " | ".join(["dataset", "step", *names]) + " |", "|---" * (len(names) + 2) + "|"]
    for row in rows:
        cells = [row["dataset"], str(row["step"])]
        cells += [f"{row['results'][name]:.1f}" for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; returns its exit code."""
    parser = CommandParser(
        prog="resobj-d2 analyze proposals", description=__doc__.partition("\n")[0]
    )
    add_config_option(parser)
    add_weights_option(parser)
    add_import_option(parser)
    parser.add_argument(
        "--limits",
        nargs="+",
        type=int,
        default=[100, 300, 1000],
        metavar="N",
        help="best proposals of an image that count (default: 100 300 1000)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write all results to this file"
    )
    parser.add_argument(
        "--write",
        type=Path,
        metavar="DIR",
        help="also write the proposals there, a file for each dataset, for Fast R-CNN",
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="changes to the configuration",
    )
    args = parser.parse_args(argv)
    opts = with_weights(args.opts, args.weights)
    cfg = load_config(args.config_file, opts, training=False, imports=args.imports)
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "proposals need trained weights: give --weights FILE, or set MODEL.WEIGHTS"
        )
    rows = evaluate_proposals(cfg, limits=args.limits, folder=args.write)
    print(table(rows))
    if args.json:
        with replacing(args.json) as file:
            file.write(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
