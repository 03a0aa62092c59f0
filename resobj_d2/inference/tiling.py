"""Detection in overlapping tiles of a large picture, merged into one set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Tiling", "suppress_contained"]

MATCH = 0.5  # SAHI's default of its match threshold


@dataclass(frozen=True)
class Tiling:
    """Square tiles, as SAHI cuts them, besides the whole picture.

    Attributes:
        size: side of a tile in pixels.
        overlap: fraction of a tile that the next one repeats, in [0, 1).
    """

    size: int
    overlap: float = 0.2

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.overlap < 1:
            raise ValueError(
                "PREDICT.TILE must be positive and PREDICT.TILE_OVERLAP in [0, 1), "
                f"got {self.size} and {self.overlap}"
            )

    def windows(self, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """(x1, y1, x2, y2) of what is detected in: the tiles by rows, then the whole picture.

        The last tile of a row or column is moved back to end at the picture's edge. A picture no
        larger than a tile is detected in once.
        """
        tiles = [
            (x1, y1, x2, y2) for y1, y2 in self._spans(height) for x1, x2 in self._spans(width)
        ]
        whole = (0, 0, width, height)
        return [whole] if tiles == [whole] else [*tiles, whole]

    def _spans(self, length: int) -> list[tuple[int, int]]:
        step = max(self.size - int(self.overlap * self.size), 1)
        spans, start = [], 0
        while True:
            end = min(start + self.size, length)
            spans.append((max(0, end - self.size), end))
            if end == length:
                return spans
            start += step

    def merge(
        self, parts: Sequence[Instances], windows: Sequence[tuple], height: int, width: int
    ) -> Instances:
        """The detections of all windows in pixels of the picture, without duplicates, best first.

        Args:
            parts: detections of each window, in its own pixels.
            windows: from :meth:`windows`.
        """
        pairs = list(zip(parts, windows, strict=True))
        if len(pairs) == 1:
            return _moved(*pairs[0], height, width)
        boxes = torch.cat([_moved_boxes(x, window).tensor for x, window in pairs])
        scores, classes = (torch.cat([x.get(k) for x in parts]) for k in ("scores", "pred_classes"))
        keep = suppress_contained(boxes, scores, classes)
        # Masks of the whole picture are made for what is kept alone.
        first, ranks, kept = 0, [], []
        for part, window in pairs:
            own = (keep >= first) & (keep < first + len(part))
            kept.append(_moved(part[keep[own] - first], window, height, width))
            ranks.append(own.nonzero()[:, 0])
            first += len(part)
        return Instances.cat(kept)[torch.cat(ranks).argsort()]


def _moved(found: Instances, window: tuple, height: int, width: int) -> Instances:
    """Detections of a window in pixels of the whole picture."""
    x1, y1, x2, y2 = window
    result = Instances((height, width))
    for name, value in found.get_fields().items():
        if name == "pred_boxes":
            value = _moved_boxes(found, window)
        elif name == "pred_masks":
            value = F.pad(value, (x1, width - x2, y1, height - y2))
        elif name == "pred_keypoints":
            value = value + value.new_tensor([x1, y1, 0.0])
        elif name == "pred_keypoint_heatmaps":  # of the network's own size, not the picture's
            continue
        result.set(name, value)
    return result


def _moved_boxes(found: Instances, window: tuple) -> Boxes:
    boxes = found.pred_boxes.tensor
    return Boxes(boxes + boxes.new_tensor([*window[:2], *window[:2]]))


def suppress_contained(
    boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float = MATCH
) -> Tensor:
    """Class-wise NMS by the intersection over the smaller box; the kept rows, best first.

    An object that a tile cuts gives a box inside that of the whole object: their IoU may be small,
    but the intersection is all of the smaller one. SAHI's ``NMS`` with its metric ``IOS``.

    Args:
        boxes: (C, 4).
        scores: (C,).
        classes: (C,) int64.
        threshold: a box is dropped if a better one of its class covers it, or is covered by it, by
            this fraction or more.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, classes = boxes[order].double().cpu(), classes[order].cpu()
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    area = sides.prod(dim=1)
    alive = torch.ones(len(boxes), dtype=torch.bool)
    kept = []
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        kept.append(i)
        low = torch.maximum(boxes[i, :2], boxes[:, :2])
        high = torch.minimum(boxes[i, 2:], boxes[:, 2:])
        shared = (high - low).clamp(min=0).prod(dim=1)
        smaller = torch.minimum(area[i], area).clamp(min=1e-9)
        alive &= (shared / smaller < threshold) | (classes != classes[i])
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]
