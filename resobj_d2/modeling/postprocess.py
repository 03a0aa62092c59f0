"""From scored candidates to detections."""

from __future__ import annotations

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor

from resobj_d2.structures import Candidates

__all__ = ["DensePostprocess"]


class DensePostprocess:
    """Threshold and top-k per level, class-wise NMS, and the best ``max_detections``.

    Args:
        score_thresh: candidates must score more.
        topk: candidates per level in front of NMS.
        nms_thresh: a box is suppressed by a better one of its class with a larger IoU.
        max_detections: per image.
    """

    def __init__(
        self, *, score_thresh: float, topk: int, nms_thresh: float, max_detections: int
    ) -> None:
        if topk < 1 or max_detections < 1:
            raise ValueError(
                "POSTPROCESS.TOPK and TEST.DETECTIONS_PER_IMAGE must be at least 1, "
                f"got {topk} and {max_detections}"
            )
        self.score_thresh = score_thresh
        self.topk = topk
        self.nms_thresh = nms_thresh
        self.max_detections = max_detections

    @classmethod
    def from_config(cls, node, max_detections: int) -> DensePostprocess:
        return cls(
            score_thresh=node.SCORE_THRESH,
            topk=node.TOPK,
            nms_thresh=node.NMS_THRESH,
            max_detections=max_detections,
        )

    def select(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Anchors (C,) and classes (C,) of one level's candidates, best first.

        Args:
            scores: (R_l, K). NaN never passes.
        """
        passing = torch.nonzero(scores > self.score_thresh)
        values = scores[passing[:, 0], passing[:, 1]]
        best = values.sort(descending=True, stable=True).indices[: self.topk]
        anchors, classes = passing[best].unbind(dim=1)
        return anchors, classes

    def suppress(self, candidates: Candidates, image_size: tuple[int, int]) -> Instances:
        """Detections of one image.

        Args:
            image_size: (height, width) of the unpadded network input.

        Returns:
            Instances with ``pred_boxes``, ``scores``, ``pred_classes``, and the fused
            probabilities as ``<name>_score`` where there are several.
        """
        finite = torch.isfinite(candidates.boxes).all(dim=1)
        keep = torch.nonzero(finite)[:, 0]
        keep = keep[
            batched_nms(
                candidates.boxes[keep],
                candidates.scores[keep],
                candidates.classes[keep],
                self.nms_thresh,
            )
        ][: self.max_detections]
        result = Instances(image_size)
        result.pred_boxes = Boxes(candidates.boxes[keep])
        result.scores = candidates.scores[keep]
        result.pred_classes = candidates.classes[keep]
        if len(candidates.factors) > 1:
            for name, value in candidates.factors.items():
                result.set(f"{name}_score", value[keep])
        return result
