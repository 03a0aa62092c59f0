"""M1, M2, M4: the best ground truth of every anchor, and its label by RetinaNet's rule."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import eager, inputs
from benchmarks.case import Call, Case, Target
from resobj_d2 import ops

RULE = {"thresholds": [0.4, 0.5], "labels": [0, -1, 1]}


def make(count: int, image: tuple[int, int] = inputs.IMAGE):
    def boxes(device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
        gt_boxes = inputs.gt_boxes(count, seed, image)
        return inputs.anchors(image).to(device), gt_boxes.to(device)

    return boxes


def ours(anchors: Tensor, gt_boxes: Tensor) -> Call:
    def call() -> tuple[Tensor, Tensor]:
        match = ops.match_anchors(anchors, gt_boxes, [len(gt_boxes)], **RULE)
        return match.gt_index[0], match.label[0]

    return call


def detectron2(anchors: Tensor, gt_boxes: Tensor) -> Call:
    from detectron2.modeling.matcher import Matcher
    from detectron2.structures import Boxes, pairwise_iou

    matcher = Matcher(*RULE.values(), allow_low_quality_matches=True)
    first, second = Boxes(gt_boxes), Boxes(anchors)
    return lambda: matcher(pairwise_iou(first, second))


def compiled(anchors: Tensor, gt_boxes: Tensor) -> Call:
    match = torch.compile(eager.match, dynamic=False, fullgraph=True)
    return lambda: match(anchors, gt_boxes)


def verify(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> None:
    """No anchor may differ. Without ground truth Detectron2's match is row 0, ours is -1."""
    (index_a, kind_a), (index_b, kind_b) = a, b
    assert torch.equal(kind_a, kind_b), f"{int((kind_a != kind_b).sum())} labels differ"
    different = int((index_a.clamp(min=0) != index_b).sum())
    assert different == 0, f"{different} matches differ"


def match_case(count: int, target: Target, malloc: tuple[str, ...] = ("warm",)) -> Case:
    return Case(
        id="M1",
        size=f"{inputs.NUM_ANCHORS} x {count}",
        make=make(count),
        ours=ours,
        peers={"Detectron2": detectron2},
        verify=verify,
        targets={"Detectron2": target},
        peak_mb=4,
        reads=16 * inputs.NUM_ANCHORS,
        writes=13 * inputs.NUM_ANCHORS,
        malloc=malloc,
    )


CASES = [
    match_case(1, Target(cpu=4, cuda=6)),
    match_case(10, Target(cpu=20, cuda=10)),
    match_case(50, Target(cpu=60, cuda=12), malloc=("warm", "default")),
    match_case(200, Target(cpu=100, cuda=20)),
    Case(
        id="M2",
        size=f"{inputs.NUM_ANCHORS} x 50",
        make=make(50),
        ours=ours,
        peers={"torch.compile": compiled},
        verify=verify,
        targets={"torch.compile": Target(cpu=8, cuda=2)},
        max_threads=1,  # code is compiled for a fixed number of threads
        slow=True,
    ),
    Case(
        id="M4",
        size=f"{inputs.NUM_ANCHORS} x 1000",
        make=make(1000),
        ours=ours,
        peers={"Detectron2": detectron2},
        verify=verify,
        targets={"Detectron2": Target(cpu=150, cuda=20)},
        peak_mb=10,
        reads=16 * inputs.NUM_ANCHORS,
        writes=13 * inputs.NUM_ANCHORS,
        malloc=("default",),
        max_threads=1,
        min_rounds=3,
        slow=True,
    ),
    # The matrix alone would take 9.6 GB; see detectron2 issue 3750.
    Case(
        id="M4",
        size="1199700 x 2000",
        make=make(2000, inputs.LARGE_IMAGE),
        ours=ours,
        peers={},
        verify=verify,
        peak_mb=60,
        malloc=("default",),
        slow=True,
    ),
]
