"""P1, P2: the matrix of overlaps of ground truth and anchors."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import inputs
from benchmarks.case import MIB, Call, Case, Target
from resobj_d2 import ops


def make(count: int):
    def boxes(device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
        return inputs.gt_boxes(count, seed).to(device), inputs.anchors().to(device)

    return boxes


def ours(gt_boxes: Tensor, anchors: Tensor) -> Call:
    return lambda: ops.pairwise_box_iou(gt_boxes, anchors)


def ours_giou(gt_boxes: Tensor, anchors: Tensor) -> Call:
    return lambda: ops.pairwise_box_iou(gt_boxes, anchors, "giou")


def torchvision(gt_boxes: Tensor, anchors: Tensor) -> Call:
    from torchvision.ops import box_iou

    return lambda: box_iou(gt_boxes, anchors)


def torchvision_giou(gt_boxes: Tensor, anchors: Tensor) -> Call:
    from torchvision.ops import generalized_box_iou

    return lambda: generalized_box_iou(gt_boxes, anchors)


def detectron2(gt_boxes: Tensor, anchors: Tensor) -> Call:
    from detectron2.structures import Boxes, pairwise_iou

    first, second = Boxes(gt_boxes), Boxes(anchors)
    return lambda: pairwise_iou(first, second)


def fast_box_ops(gt_boxes: Tensor, anchors: Tensor) -> Call:
    from torch_fast_box_ops import box_iou

    return lambda: box_iou(gt_boxes, anchors)


def fast_box_ops_giou(gt_boxes: Tensor, anchors: Tensor) -> Call:
    from torch_fast_box_ops import generalized_box_iou

    return lambda: generalized_box_iou(gt_boxes, anchors)


def verify(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def iou_case(count: int, target: Target) -> Case:
    return Case(
        id="P1",
        size=f"{inputs.NUM_ANCHORS} x {count}",
        make=make(count),
        ours=ours,
        peers={
            "torchvision": torchvision,
            "Detectron2": detectron2,
            "torch-fast-box-ops": fast_box_ops,
        },
        verify=verify,
        targets={"torchvision": target, "Detectron2": target},
        peak_mb=4 * count * inputs.NUM_ANCHORS / MIB + 2,
        reads=16 * inputs.NUM_ANCHORS,
        writes=4 * count * inputs.NUM_ANCHORS,
    )


CASES = [
    iou_case(10, Target(cpu=12, cuda=7)),
    iou_case(50, Target(cpu=12, cuda=12)),
    iou_case(200, Target(cpu=12, cuda=15)),
    Case(
        id="P2",
        size=f"{inputs.NUM_ANCHORS} x 50",
        make=make(50),
        ours=ours_giou,
        peers={"torchvision": torchvision_giou, "torch-fast-box-ops": fast_box_ops_giou},
        verify=verify,
        targets={"torchvision": Target(cpu=12, cuda=18)},
        peak_mb=4 * 50 * inputs.NUM_ANCHORS / MIB + 2,
        reads=16 * inputs.NUM_ANCHORS,
        writes=4 * 50 * inputs.NUM_ANCHORS,
    ),
]
