"""Whether an exported detector finds what the model finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from .detector import ExportableDetector
from .formats import ExportedDetector

__all__ = [
    "BOX_RELATIVE_TOLERANCE",
    "BOX_TOLERANCE",
    "SCORE_TOLERANCE",
    "Parity",
    "as_batch",
    "compare",
]

BOX_TOLERANCE = 1e-3
"""In pixels, of a coordinate of a box up to 100 px wide (x) or high (y)."""
BOX_RELATIVE_TOLERANCE = 1e-5
"""Of the width or height of a larger box: it multiplies what is predicted, rounding included."""
SCORE_TOLERANCE = 1e-4
"""Of a score between 0 and 1."""


@dataclass(frozen=True)
class Parity:
    """The largest differences between a model and its export.

    Attributes:
        found: number of the model's detections, or anchors where there is no selection.
        unmatched: detections that only one of them has.
        box: largest difference of a coordinate in pixels.
        box_share: largest difference of a coordinate, as a share of what its box may differ by.
        score: largest difference of a score.
    """

    found: int
    unmatched: int
    box: float
    box_share: float
    score: float

    @property
    def holds(self) -> bool:
        """Whether they agree within the tolerances; not where a number is NaN."""
        return not self.unmatched and self.box_share <= 1 and self.score <= SCORE_TOLERANCE


def as_batch(inputs: Sequence[Mapping], size_divisibility: int) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs of an exported detector, from Detectron2's.

    Args:
        inputs: dicts with ``image`` (3, H, W) and the ``height`` and ``width`` of its original.
        size_divisibility: see :class:`ExportableDetector`.
    """
    sizes = [tuple(x["image"].shape[1:]) for x in inputs]
    height, width = (
        -(-max(size[i] for size in sizes) // size_divisibility) * size_divisibility for i in (0, 1)
    )
    # Padded with what is no part of a picture, as it may be with anything.
    images = inputs[0]["image"].new_full((len(inputs), 3, height, width), 255)
    for padded, x, (h, w) in zip(images, inputs, sizes, strict=True):
        padded[:, :h, :w] = x["image"]
    original = [(x["height"], x["width"]) for x in inputs]
    return images, torch.tensor(sizes), torch.tensor(original)


@torch.no_grad()
def compare(
    model: nn.Module,
    exported: ExportedDetector | ExportableDetector,
    inputs: Sequence[Mapping],
    *,
    detector: ExportableDetector,
) -> list[Parity]:
    """One :class:`Parity` for each image.

    Args:
        model: the detector as Detectron2 calls it.
        exported: what is compared with it.
        inputs: Detectron2's, which go through both as one batch.
        detector: what was exported, for its sizes and limits.
    """
    batch = as_batch(inputs, detector.size_divisibility)
    batch = tuple(x.to(detector.device) for x in batch)
    outputs = [x.cpu() for x in exported(*batch)]
    if detector.raw:
        reference = [x.cpu() for x in detector(*batch)]
        return [_raw_parity([x[i] for x in outputs], [x[i] for x in reference])
                for i in range(len(inputs))]  # fmt: skip
    lowest = detector.limits["score_threshold"]
    most = detector.limits["max_detections"]
    result = []
    for i, output in enumerate(model(list(inputs))):
        boxes, scores, classes, counts = (x[i] for x in outputs)
        found = output["instances"].to("cpu")
        count = int(counts)
        result.append(_parity(found, boxes[:count], scores[:count], classes[:count], lowest, most))
    return result


def _parity(
    found: Instances, boxes: Tensor, scores: Tensor, classes: Tensor, lowest: float, most: int
) -> Parity:
    """Pairs detections of one class by their boxes, the best first."""
    expected = found.pred_boxes.tensor
    differences = (expected[:, None] - boxes[None]).abs()
    distance = differences.amax(dim=2)
    gap = (found.scores[:, None] - scores[None]).abs()
    same = found.pred_classes[:, None] == classes[None]
    # Equal boxes of one class do not survive the suppression, unless that is off: then by score.
    cost = torch.where(same, distance + gap, torch.inf)
    limits = _box_limits(expected)
    taken = torch.zeros(len(boxes), dtype=torch.bool)
    box = share = score = 0.0
    alone: list[float] = []
    for i in range(len(expected)):
        open_cost = torch.where(taken, torch.inf, cost[i])
        j = int(open_cost.argmin()) if len(boxes) else -1
        if j < 0 or not open_cost[j] < 1:
            alone.append(float(found.scores[i]))
            continue
        taken[j] = True
        box, score = max(box, float(distance[i, j])), max(score, float(gap[i, j]))
        share = max(share, float((differences[i, j] / limits[i]).max()))
    alone += scores[~taken].tolist()
    # Whether a score at the very limit passes is decided by rounding.
    cuts = [lowest]
    cuts += [float(x.min()) for x in (found.scores, scores) if len(x) >= most]
    unmatched = sum(all(abs(x - cut) > SCORE_TOLERANCE for cut in cuts) for x in alone)
    return Parity(len(found), unmatched, box=box, box_share=share, score=score)


def _box_limits(boxes: Tensor) -> Tensor:
    """(..., 4) to (..., 4): what each coordinate may differ by."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return (BOX_RELATIVE_TOLERANCE * torch.cat((sides, sides), dim=-1)).clamp(min=BOX_TOLERANCE)


def _raw_parity(outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> Parity:
    found, given = len(reference[0]), len(outputs[0])
    if outputs[0].shape != reference[0].shape:
        return Parity(found, abs(found - given) or 1, box=0.0, box_share=0.0, score=0.0)
    score, box = ((a - b).abs() for a, b in zip(outputs, reference, strict=True))
    share = box / _box_limits(reference[1])
    return Parity(
        found, 0, box=float(box.max()), box_share=float(share.max()), score=float(score.max())
    )
