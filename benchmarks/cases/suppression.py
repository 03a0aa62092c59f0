"""N1, N2: greedy non-maximum suppression per class, and per level for an RPN's proposals."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import inputs
from benchmarks.case import Bind, Call, Case, Target
from resobj_d2 import ops

CLASSES = 80
LEVELS = 5
PER_OBJECT = 20  # overlapping candidates per object, as from a dense head


def make_clustered(count: int):
    """Boxes around objects, most of them of the object's class; no two scores are equal."""

    def tensors(device: torch.device, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        g = inputs.generator(seed)
        objects = inputs.gt_boxes(max(1, count // PER_OBJECT), seed + 1)
        of_object = torch.randint(len(objects), (count,), generator=g)
        boxes = inputs.refined(objects[of_object], seed + 2)
        classes = torch.randint(CLASSES, (len(objects),), generator=g)[of_object]
        others = torch.randint(CLASSES, (count,), generator=g)
        classes = torch.where(torch.rand(count, generator=g) < 0.8, classes, others)
        return boxes.to(device), scores(count, seed + 3).to(device), classes.to(device)

    return tensors


def make_spread(count: int):
    """Boxes all over the image, nearly all of which are kept, on five levels."""

    def tensors(device: torch.device, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        levels = torch.randint(LEVELS, (count,), generator=inputs.generator(seed))
        boxes = inputs.gt_boxes(count, seed + 1)
        return boxes.to(device), scores(count, seed + 2).to(device), levels.to(device)

    return tensors


def scores(count: int, seed: int) -> Tensor:
    return (torch.randperm(count, generator=inputs.generator(seed)) + 1) / (count + 1)


def ours(threshold: float, most: int = -1) -> Bind:
    def bind(boxes: Tensor, scores: Tensor, classes: Tensor) -> Call:
        return lambda: ops.batched_nms(boxes, scores, classes, threshold, most)

    return bind


def torchvision(threshold: float, most: int | None = None) -> Bind:
    def bind(boxes: Tensor, scores: Tensor, classes: Tensor) -> Call:
        from torchvision.ops import batched_nms

        return lambda: batched_nms(boxes, scores, classes, threshold)[:most]

    return bind


def verify(a: Tensor, b: Tensor) -> None:
    """The same boxes in the same order."""
    assert torch.equal(a, b), f"{len(a)} and {len(b)} boxes, not the same ones"


def clustered_case(count: int, target: Target, devices: tuple[str, ...] = ("cpu", "cuda")) -> Case:
    return Case(
        id="N1",
        size=f"{count} of {CLASSES} classes",
        make=make_clustered(count),
        ours=ours(0.5),
        peers={"torchvision": torchvision(0.5)},
        verify=verify,
        targets={"torchvision": target},
        devices=devices,
    )


CASES = [
    clustered_case(1000, Target(cpu=5, cuda=2)),
    clustered_case(5000, Target(cpu=15, cuda=2)),
    clustered_case(10_000, Target(cpu=12)),
    clustered_case(20_000, Target(cpu=8)),
    # Above 25,000 boxes on a GPU torchvision loops over classes instead of shifting them apart.
    clustered_case(30_000, Target(cuda=15), devices=("cuda",)),
    Case(
        id="N2",
        size="9000 of 5 levels",
        make=make_spread(9000),
        ours=ours(0.7),
        peers={"torchvision": torchvision(0.7)},
        verify=verify,
        targets={"torchvision": Target(cpu=15, cuda=2)},
    ),
    Case(
        id="N2",
        size="9000 of 5 levels best 1000",
        make=make_spread(9000),
        ours=ours(0.7, 1000),
        peers={"torchvision": torchvision(0.7, 1000)},
        verify=verify,
        targets={"torchvision": Target(cpu=100, cuda=2)},
    ),
]
