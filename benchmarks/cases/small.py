"""G: inputs so small that only call overhead matters. Must never be slower than the peer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import eager, inputs
from benchmarks.case import Bind, Call, Case, Target
from resobj_d2 import ops

from . import detections, losses, matching, pairwise, residual, suppression

ANCHORS = 100


def small(
    name: str,
    size: str,
    make: Callable,
    ours: Bind,
    peers: dict[str, Bind],
    verify: Callable,
) -> Case:
    return Case(
        id="G",
        size=f"{name} {size}",
        make=make,
        ours=ours,
        peers=peers,
        verify=verify,
        targets=dict.fromkeys(peers, Target(cpu=1, cuda=1)),
        max_threads=1,
        process="small",
    )


def few_pairs(count: int) -> Callable:
    """Anchors and overlapping ground truth; without overlap our rule differs from Detectron2's."""

    def tensors(device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
        anchors = inputs.anchors()[:ANCHORS].contiguous()
        return anchors.to(device), inputs.refined(anchors[:count], seed).to(device)

    return tensors


def ours_aligned(pred: Tensor, target: Tensor) -> Call:
    return losses.with_gradient(lambda: ops.box_iou_aligned(pred, target).sum(), pred)


def eager_aligned(pred: Tensor, target: Tensor) -> Call:
    return losses.with_gradient(lambda: eager.aligned_iou(pred, target).sum(), pred)


def box_cases() -> list[Case]:
    cases = []
    for count in (0, 1, 2):
        size = f"{ANCHORS} x {count}"
        peers = {"torchvision": pairwise.torchvision, "Detectron2": pairwise.detectron2}
        make = few_pairs(count)
        cases.append(small("IoU", size, make, pairwise.ours, peers, pairwise.verify))
        peers = {"Detectron2": matching.detectron2}
        cases.append(small("match", size, make, matching.ours, peers, matching.verify))
    return cases


def loss_cases() -> list[Case]:
    cases = []
    for count in (0, 1, ANCHORS):
        size = f"n={count}"
        of_boxes, of_deltas = losses.make_boxes(count), losses.make_deltas(count)
        focal = {"fvcore jit": losses.fvcore_focal, "torchvision": losses.torchvision_focal}
        giou = {"fvcore": losses.fvcore_giou, "torchvision": losses.torchvision_giou}
        balanced, aligned = {"eager": losses.eager_balanced}, {"eager": eager_aligned}
        objectness = {"eager, masked": residual.masked, "eager, indexed": residual.indexed}
        if count == 0:  # amin over no anchors is an error there
            del objectness["eager, masked"]
        verify = losses.verify
        make = losses.make_focal(count)
        cases += [
            small("focal loss", size, make, losses.ours_focal, focal, verify),
            small("GIoU loss", size, of_boxes, losses.ours_giou, giou, verify),
            small("balanced L1", size, of_deltas, losses.ours_balanced, balanced, verify),
            small("aligned IoU", size, of_boxes, ours_aligned, aligned, verify),
            small(
                "ResObj", f"{size} T=2", residual.make(2, count, 1), residual.ours, objectness,
                residual.verify,
            ),
        ]  # fmt: skip
    return cases


def nms_cases() -> list[Case]:
    make, ours = suppression.make_clustered, suppression.ours(0.5)
    peers = {"torchvision": suppression.torchvision(0.5)}
    return [
        small("NMS", f"n={count}", make(count), ours, peers, suppression.verify)
        for count in (0, 1, ANCHORS)
    ]


def detection_cases() -> list[Case]:
    make = detections.make((64, 64), -4.6, 0.43, objectness=False)
    peers = {"Detectron2": detections.detectron2}
    return [small("detections", "64x64", make, detections.ours, peers, detections.verify)]


CASES = [*box_cases(), *loss_cases(), *nms_cases(), *detection_cases()]
