"""GIoU in place of IoU in COCO's matching (Rezatofighi et al., CVPR 2019, section 5)."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch

from resobj_d2 import ops

__all__ = ["match_by_giou"]


def match_by_giou(evaluation) -> None:
    """Let a ``COCOeval`` of boxes compare by GIoU; call it in front of its ``evaluate``.

    Thresholds and everything after the matching stay. A crowd region still takes detections by the
    share of them that it covers: by GIoU, of which the size of a region takes away, large regions
    would take none, and what lies in them would be false positives.

    Args:
        evaluation: of either implementation, for "bbox", classes apart.
    """
    truth = _by_image_and_class(evaluation.cocoGt)
    detected = _by_image_and_class(evaluation.cocoDt)

    def overlaps(image: int, category: int) -> np.ndarray | list:
        """(detections, ground truth), detections by descending score, as COCO's code wants it."""
        boxes, detections = truth.get((image, category)), detected.get((image, category))
        if not boxes or not detections:
            return []
        # Stable, as in COCO's code; both lists are in the order of the datasets there too.
        detections = sorted(detections, key=lambda item: -item["score"])
        detections = _corners(detections[: evaluation.params.maxDets[-1]])
        corners = _corners(boxes)
        crowd = torch.tensor([bool(item["iscrowd"]) for item in boxes])
        giou = ops.pairwise_box_iou(corners, detections, kind="giou")
        covered = ops.pairwise_box_iou(corners, detections, kind="iof")
        return torch.where(crowd[:, None], covered, giou).T.contiguous().numpy()

    evaluation.computeIoU = overlaps


def _by_image_and_class(index) -> dict[tuple[int, int], list[dict]]:
    groups = defaultdict(list)
    for item in index.dataset["annotations"]:
        groups[item["image_id"], item["category_id"]].append(item)
    return groups


def _corners(items: list[dict]) -> torch.Tensor:
    """(number, 4) float64 XYXY."""
    boxes = torch.tensor([item["bbox"] for item in items], dtype=torch.float64)
    boxes[:, 2:] += boxes[:, :2]
    return boxes
