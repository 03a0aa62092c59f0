"""Removal of duplicate detections, by a choice of methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from resobj_d2.ops import batched_nms, matrix_nms, soft_nms
from resobj_d2.options import Option

__all__ = ["METHODS", "Suppression"]

METHODS = ("greedy", "soft_linear", "soft_gaussian", "matrix")


@dataclass(frozen=True, kw_only=True)
class Suppression:
    """Class-wise suppression of one image's candidates by one of four methods.

    Attributes:
        method: "greedy": a box is dropped if a better one of its class overlaps it;
            "soft_linear", "soft_gaussian": its score decays instead (Bodla et al., Soft-NMS);
            "matrix": scores decay by all better boxes at once, with the gaussian kernel (Wang et
            al., SOLOv2, Eq. 4 and 5).
        threshold: an IoU: for "greedy" the largest that is kept, for "soft_linear" the smallest
            that makes a score decay.
        sigma: of the gaussian decay.
    """

    method: Annotated[
        str,
        Option(
            "greedy, soft_linear, soft_gaussian or matrix", key="NMS", source="Soft-NMS; SOLOv2"
        ),
    ] = "greedy"
    threshold: Annotated[
        float,
        Option(
            "IoU above which a better box of its class suppresses a box or lowers its score",
            key="NMS_THRESH",
            only={"method": ("greedy", "soft_linear")},
        ),
    ] = 0.5
    sigma: Annotated[
        float,
        Option(
            "width of the decay exp(-IoU^2 / sigma)",
            key="NMS_SIGMA",
            source="Soft-NMS, Eq. 3",
            only={"method": ("soft_gaussian", "matrix")},
        ),
    ] = 0.5

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"NMS must be one of {', '.join(METHODS)}, got {self.method!r}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"NMS_THRESH must be in [0, 1], got {self.threshold}")
        if not self.sigma > 0:
            raise ValueError(f"NMS_SIGMA must be positive, got {self.sigma}")

    @property
    def decays(self) -> bool:
        """Whether it lowers scores instead of dropping boxes."""
        return self.method != "greedy"

    def __call__(
        self,
        boxes: Tensor,
        scores: Tensor,
        classes: Tensor,
        *,
        min_score: float,
        max_output: int,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            boxes: (C, 4).
            scores: (C,).
            classes: (C,) int64.
            min_score: scores must stay above this after decay; "greedy" ignores it.
            max_output: maximum number of boxes to keep.

        Returns:
            (D,) the kept rows, best first, and (D,) their scores.
        """
        if self.method == "greedy":
            keep = batched_nms(boxes, scores, classes, self.threshold, max_output)
            return keep, scores[keep]
        if self.method == "matrix":
            decayed = matrix_nms(boxes, scores, classes, sigma=self.sigma)
            decayed, keep = decayed.sort(descending=True, stable=True)
        else:
            keep, decayed = soft_nms(
                boxes,
                scores,
                classes,
                method=self.method.removeprefix("soft_"),
                iou_threshold=self.threshold,
                sigma=self.sigma,
                min_score=max(min_score, 0.0),
                max_output=max_output,
            )
        # Scores descend: those above the limit come first.
        count = min(int(torch.count_nonzero(decayed > min_score)), max_output)
        return keep[:count], decayed[:count]
