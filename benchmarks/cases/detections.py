"""F1, F2: raw maps of a dense head to the best 100 boxes of one image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks import eager, inputs
from benchmarks.case import Call, Case, Target
from resobj_d2 import ops

CLASSES = 80
ANCHORS_PER_CELL = 9
RULE = {"score_thresh": 0.05, "topk": 1000, "nms_thresh": 0.5, "max_detections": 100}


def make(image: tuple[int, int], mean: float, std: float, objectness: bool):
    """Logits, deltas, anchors and objectness logits per level.

    The class logits are normal. Of the anchors 2 % have an object; one in several thousand
    combinations of anchor and class scores above the threshold.
    """

    def maps(device: torch.device, seed: int) -> tuple[list[Tensor], ...]:
        g = inputs.generator(seed)
        sizes = inputs.map_sizes(image)

        def normal(channels: int) -> list[Tensor]:
            return [torch.randn(1, channels, *size, generator=g).to(device) for size in sizes]

        logits = [mean + std * x for x in normal(ANCHORS_PER_CELL * CLASSES)]
        deltas = [0.1 * x for x in normal(ANCHORS_PER_CELL * 4)]
        counts = [ANCHORS_PER_CELL * height * width for height, width in sizes]
        anchors = list(inputs.anchors(image).to(device).split(counts))
        if not objectness:
            return logits, deltas, anchors
        active = [torch.rand(x.shape, generator=g).to(device) < 0.02
                  for x in normal(ANCHORS_PER_CELL)]  # fmt: skip
        noise = normal(ANCHORS_PER_CELL)
        present = [torch.where(on, 2.0, -6.0) + x for on, x in zip(active, noise, strict=True)]
        return logits, deltas, anchors, present

    return maps


def ours(logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], *factors) -> Call:
    return lambda: ops.dense_detections(
        logits, deltas, anchors, num_classes=CLASSES, factor_logits=factors, **RULE
    )


def detectron2(logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor]) -> Call:
    from benchmarks.detectors import post_processing

    return post_processing(logits, deltas, anchors, CLASSES, **RULE)


def eager_fused(logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor],
                objectness: list[Tensor]) -> Call:  # fmt: skip
    from detectron2.layers import batched_nms
    from detectron2.modeling.box_regression import Box2BoxTransform

    decode = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)).apply_deltas

    def call() -> tuple[Tensor, Tensor, Tensor]:
        levels = zip(logits, deltas, anchors, objectness, strict=True)
        parts = [
            eager.level_candidates(*level, decode, CLASSES, RULE["score_thresh"], RULE["topk"])
            for level in levels
        ]
        boxes, scores, classes = (torch.cat(x) for x in zip(*parts, strict=True))
        keep = batched_nms(boxes, scores, classes, RULE["nms_thresh"])[: RULE["max_detections"]]
        return boxes[keep], scores[keep], classes[keep]

    return call


def verify(ours: Any, theirs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Ours are padded; the valid rows must be the same in the same order."""
    boxes, scores, classes = theirs
    count = int(ours.counts[0])
    assert count == len(boxes) > 0, f"{count} and {len(boxes)} detections"
    torch.testing.assert_close(ours.scores[0, :count], scores, rtol=1e-5, atol=1e-6)
    different = int((ours.classes[0, :count] != classes).sum())
    assert different == 0, f"{different} classes differ"
    torch.testing.assert_close(ours.boxes[0, :count], boxes, rtol=1e-5, atol=1e-2)


def traffic(objectness: bool) -> int:
    """Bytes of the maps that must be read: all logits, but only the candidates' deltas."""
    return 4 * inputs.NUM_ANCHORS * (CLASSES + objectness)


CASES = [
    Case(
        id="F1",
        size=f"{inputs.IMAGE[0]}x{inputs.IMAGE[1]} of {CLASSES} classes",
        make=make(inputs.IMAGE, -4.6, 0.43, objectness=False),
        ours=ours,
        peers={"Detectron2": detectron2},
        verify=verify,
        targets={"Detectron2": Target(cpu=15, cuda=8)},
        peak_mb=1,
        reads=traffic(False),
    ),
    Case(
        id="F2",
        size=f"{inputs.IMAGE[0]}x{inputs.IMAGE[1]} of {CLASSES} classes",
        make=make(inputs.IMAGE, -4.4, 0.6, objectness=True),
        ours=ours,
        peers={"eager, as Detectron2": eager_fused},
        verify=verify,
        targets={"eager, as Detectron2": Target(cpu=12, cuda=8)},
        peak_mb=1,
        reads=traffic(True),
    ),
]
