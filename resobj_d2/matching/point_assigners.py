"""Label assignment by where points lie in objects: FCOS and ATSS."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from resobj_d2 import ops
from resobj_d2.options import Option
from resobj_d2.structures import GroundTruth, Priors, StagePrediction, Targets

from .base import Assigner
from .build import ASSIGNER_REGISTRY

__all__ = [
    "ATSSAssigner",
    "FCOSAssigner",
    "centerness",
    "largest",
    "sides_to_points",
    "smallest_of_levels",
    "targets_of_owners",
]


def sides_to_points(anchors: Tensor, boxes: Tensor) -> Tensor:
    """(R, M, 4) distances from each anchor's centre to the left, top, right, bottom sides of a box.

    Negative where the centre lies outside that side.

    Args:
        anchors: (R, 4).
        boxes: (M, 4).
    """
    centres = (anchors[:, None, :2] + anchors[:, None, 2:]) / 2
    return torch.cat((centres - boxes[:, :2], boxes[:, 2:] - centres), dim=-1)


def centerness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """(...) of the anchors' centres in boxes, both (..., 4); 0 where a centre is not inside.

    ``sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))`` of the distances to the sides (FCOS,
    Eq. 3).
    """
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2
    before, after = centres - boxes[..., :2], boxes[..., 2:] - centres
    share = torch.minimum(before, after) / torch.maximum(before, after).clamp(min=1e-9)
    return share.clamp(min=0).prod(dim=-1).sqrt()


def targets_of_owners(
    owners: Callable[[int, Tensor, Tensor], Tensor],
    anchors: Tensor,
    ground_truth: GroundTruth,
    num_classes: int,
) -> Targets:
    """Targets where each anchor is trained as the object that owns it, and is background otherwise.

    Args:
        owners: of an image's number, its boxes (M, 4) and classes (M,): (R,) the row of each
            anchor's owner, M for none.
        anchors: (R, 4).
        num_classes: K.
    """
    rows, labels, matched = [], [], []
    offsets = ground_truth.offsets
    for i, count in enumerate(ground_truth.counts):
        own = slice(offsets[i], offsets[i] + count)
        boxes, classes = ground_truth.boxes[own], ground_truth.classes[own]
        owner = owners(i, boxes, classes)
        owned = owner < count
        # An extra row stands for "no object".
        labels.append(F.pad(classes, (0, 1), value=num_classes)[owner])
        box = F.pad(boxes, (0, 0, 0, 1))[owner]
        matched.append(torch.where(owned[:, None], box, anchors))
        rows.append(torch.where(owned, owner, -1))
    matched_gt_boxes, gt_index = torch.stack(matched), torch.stack(rows)
    ious = ops.box_iou_aligned(matched_gt_boxes.flatten(0, 1), anchors.repeat(len(rows), 1))
    return Targets(
        labels=torch.stack(labels),
        matched_gt_boxes=matched_gt_boxes,
        matched_ious=torch.where(gt_index >= 0, ious.view(gt_index.shape), 0.0),
        gt_index=gt_index,
        num_classes=num_classes,
    )


def largest(values: Tensor) -> Tensor:
    """(R,) the column with the largest value of each row; M where all of M are -inf."""
    # The extra column wins where no other is above -inf.
    lowest = torch.finfo(values.dtype).min
    return F.pad(values, (0, 1), value=lowest).argmax(dim=1)


@ASSIGNER_REGISTRY.register()
class FCOSAssigner(Assigner):
    """Points inside an object, near its centre, on the level of its size (Tian et al., "FCOS").

    A point, an anchor's centre, is trained as an object if it lies inside it, at most ``radius``
    strides from its centre along both axes, and if the largest of the distances to its four sides
    is within the level's range. Of several such objects it is the smallest; a point without any is
    background.

    Args:
        num_classes: K.
        radius: in strides; 0 for every point inside (the first version of the paper).
        size_of_interest: the largest distance on a level is ``size_of_interest`` strides, its
            smallest the largest of the next finer level; without a lower bound on the finest level
            and an upper one on the coarsest. 8 gives the paper's 64, 128, 256 and 512 for P3 to P7.
    """

    labels_by_iou = False

    def __init__(
        self,
        *,
        num_classes: int,
        radius: Annotated[
            float,
            Option(
                "largest distance from an object's centre, in strides; 0 for no limit",
                key="CENTER_RADIUS",
                source="FCOS, section 3.2",
            ),
        ] = 1.5,
        size_of_interest: Annotated[
            float,
            Option(
                "largest distance to a side on a level, in strides; the next one goes on from it",
                source="FCOS, section 3.2",
            ),
        ] = 8.0,
    ) -> None:
        if radius < 0 or size_of_interest <= 0:
            raise ValueError(
                "ASSIGNER.CENTER_RADIUS must be at least 0 and SIZE_OF_INTEREST positive, "
                f"got {radius} and {size_of_interest}"
            )
        self.num_classes = num_classes
        self.radius = radius
        self.size_of_interest = size_of_interest

    @torch.no_grad()
    def __call__(
        self,
        priors: Priors,
        anchors: Tensor,
        ground_truth: GroundTruth,
        prediction: StagePrediction | None = None,
    ) -> Targets:
        """
        Args:
            anchors: (R, 4); only their centres count.
        """
        strides = priors.anchor_strides
        limits = [self.size_of_interest * stride for stride in priors.strides[:-1]]
        ranges = zip(priors.anchors_per_level, [0.0, *limits], [*limits, math.inf], strict=True)
        parts = [(anchors.new_full((n, 1), a), anchors.new_full((n, 1), b)) for n, a, b in ranges]
        low, high = (torch.cat(part) for part in zip(*parts, strict=True))

        def owners(image: int, boxes: Tensor, classes: Tensor) -> Tensor:
            sides = sides_to_points(anchors, boxes)
            furthest = sides.amax(dim=-1)
            usable = (sides.amin(dim=-1) > 0) & (furthest > low) & (furthest < high)
            if self.radius > 0:
                off_centre = (sides[..., :2] - sides[..., 2:]).abs().amax(dim=-1) / 2
                usable &= off_centre < self.radius * strides
            area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
            return largest(torch.where(usable, -area, -torch.inf))

        return targets_of_owners(owners, anchors, ground_truth, self.num_classes)


@ASSIGNER_REGISTRY.register()
class ATSSAssigner(Assigner):
    """Adaptive training sample selection (Zhang et al. 2020, "ATSS", Algorithm 1).

    For each object, the ``candidates`` anchors of every level whose centres are nearest to its own
    are candidates. It is trained on those whose IoU with it is at least the mean plus the standard
    deviation of the IoUs of all its candidates, and whose centres lie inside it. An anchor of
    several objects belongs to the one it overlaps most; all others are background.

    Where that threshold is above all of its candidates' IoUs, it is the largest of them: on two
    levels an object might otherwise have no anchor at all.

    Args:
        num_classes: K.
        candidates: the paper's k, for one anchor per cell; with more anchors per cell, that many
            times as many.
    """

    labels_by_iou = False

    def __init__(
        self,
        *,
        num_classes: int,
        candidates: Annotated[
            int,
            Option(
                "cells of each level that are candidates of an object", source="ATSS, section 3.2"
            ),
        ] = 9,
    ) -> None:
        if candidates < 1:
            raise ValueError(f"ASSIGNER.CANDIDATES must be at least 1, got {candidates}")
        self.num_classes = num_classes
        self.candidates = candidates

    @torch.no_grad()
    def __call__(
        self,
        priors: Priors,
        anchors: Tensor,
        ground_truth: GroundTruth,
        prediction: StagePrediction | None = None,
    ) -> Targets:
        """
        Args:
            anchors: (R, 4).
        """
        limits = [self.candidates * n for n in priors.num_anchors]

        def owners(image: int, boxes: Tensor, classes: Tensor) -> Tensor:
            sides = sides_to_points(anchors, boxes)
            offset = sides[..., :2] - sides[..., 2:]
            distance = offset.square().sum(dim=-1).split(priors.anchors_per_level)
            near = smallest_of_levels(distance, limits)
            ious = ops.pairwise_box_iou(anchors, boxes)
            found = ious.gather(0, near)
            mean = found.mean(dim=0)
            variance = (found - mean).square().sum(dim=0) / max(len(found) - 1, 1)
            threshold = torch.minimum(mean + variance.sqrt(), found.amax(dim=0))
            candidate = torch.zeros_like(ious, dtype=torch.bool).scatter(
                0, near, torch.ones_like(near, dtype=torch.bool)
            )
            usable = candidate & (ious >= threshold) & (sides.amin(dim=-1) > 0)
            return largest(torch.where(usable, ious, -torch.inf))

        return targets_of_owners(owners, anchors, ground_truth, self.num_classes)


def smallest_of_levels(values: Sequence[Tensor], limits: Sequence[int]) -> Tensor:
    """(C, M) rows, among all levels, of each level's smallest ``limits[l]`` entries of a column."""
    rows, start = [], 0
    for level, limit in zip(values, limits, strict=True):
        count = min(limit, len(level))
        rows.append(start + level.topk(count, dim=0, largest=False).indices)
        start += len(level)
    return torch.cat(rows)
