"""M3: decode the boxes predicted by a stage and match them, as every later stage does."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import inputs
from benchmarks.case import Call, Case, Target
from resobj_d2 import ops

from . import matching

# As in the second stage of ConRetinaNet, without low-quality matches.
RULE = {"thresholds": [0.5, 0.6], "labels": [0, -1, 1]}


def make(count: int):
    def tensors(device: torch.device, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        anchors, gt_boxes = matching.make(count)(device, seed)
        return anchors, inputs.deltas(len(anchors), seed + 1).to(device), gt_boxes

    return tensors


def ours(anchors: Tensor, deltas: Tensor, gt_boxes: Tensor) -> Call:
    sizes = [len(gt_boxes)]

    def call() -> tuple[Tensor, Tensor]:
        refined = ops.reassign_anchors(anchors, deltas[None], gt_boxes, sizes, **RULE)
        return refined.gt_index[0], refined.label[0]

    return call


def detectron2(anchors: Tensor, deltas: Tensor, gt_boxes: Tensor) -> Call:
    from detectron2.modeling.box_regression import Box2BoxTransform
    from detectron2.modeling.matcher import Matcher
    from detectron2.structures import Boxes, pairwise_iou

    coder = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
    matcher = Matcher(*RULE.values(), allow_low_quality_matches=False)
    gt = Boxes(gt_boxes)
    return lambda: matcher(pairwise_iou(gt, Boxes(coder.apply_deltas(deltas, anchors))))


def refine_case(count: int, target: Target) -> Case:
    return Case(
        id="M3",
        size=f"{inputs.NUM_ANCHORS} x {count}",
        make=make(count),
        ours=ours,
        peers={"Detectron2": detectron2},
        verify=matching.verify,
        targets={"Detectron2": target},
        # 5 beyond the refined boxes and the targets, which Detectron2 computes later.
        peak_mb=5 + 2 * 16 * inputs.NUM_ANCHORS / 2**20,
        reads=32 * inputs.NUM_ANCHORS,
        writes=13 * inputs.NUM_ANCHORS,
    )


CASES = [
    refine_case(10, Target(cpu=15, cuda=12)),
    refine_case(50, Target(cpu=40, cuda=12)),
    refine_case(200, Target(cpu=70, cuda=12)),
]
