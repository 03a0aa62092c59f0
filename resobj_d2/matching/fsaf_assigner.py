"""FSAF's label assignment with online feature selection (Zhu et al. 2019, sections 3.1-3.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from resobj_d2 import ops
from resobj_d2.options import Option
from resobj_d2.structures import IGNORE, GroundTruth, Priors, StagePrediction, Targets

from .base import Assigner, predicted_boxes
from .build import ASSIGNER_REGISTRY

__all__ = ["FSAFAssigner"]

UNSELECTED = ("other_classes", "background", "ignore")


@dataclass
class _Regions:
    """The points of all levels relative to the M boxes of one image.

    ``effective`` and ``ring`` (R, M) tell whether a point is in a box's effective region, or in its
    ignoring but not its effective region; ``nearest`` (R, M) whether it is the point of its level
    that is nearest to the box's centre; ``area`` (M,) of the boxes; ``levels`` (R,) of the points.
    """

    effective: Tensor
    ring: Tensor
    nearest: Tensor
    area: Tensor
    levels: Tensor

    def smallest(self, member: Tensor) -> Tensor:
        """(R,) the smallest box of which a point is a member (R, M); M if of none."""
        area = torch.where(member, self.area, math.inf)
        # The extra column wins where no box contains the point.
        return F.pad(area, (0, 1), value=torch.finfo(area.dtype).max).argmin(dim=1)


@ASSIGNER_REGISTRY.register()
class FSAFAssigner(Assigner):
    """Trains each ground truth on the one level that fits it best.

    On every level the points in the middle of a box (effective region) are candidates. On the
    chosen and the adjacent levels, a ring around them (ignoring region) is ignored; all other
    points are background. Where boxes trained on the same level overlap, a point belongs to the
    smallest of them.

    Args:
        num_classes: K.
        selection: "online": the level with the smallest mean of focal loss plus ``-ln IoU`` over
            the effective region (Eq. 2); "heuristic": by size (Eq. 3).
        effective_scale, ignore_scale: sides of the two regions relative to the box.
        canonical_level: for "heuristic": the level, log2(stride), of a box of 224 pixels.
        unselected: how a box's effective points on the other levels are trained:
            "other_classes" (negative for all but the box's own class), "background" or "ignore".
        focal_alpha, focal_gamma: of the focal loss used by "online".

    A box so small that no point lies in its effective region, on any level or on that chosen by
    size, is trained on the nearest point instead. A box is only left out if smaller ones that are
    trained on its level have all of its points.
    """

    needs_predictions = True
    labels_by_iou = False

    def __init__(
        self,
        *,
        num_classes: int,
        selection: Annotated[
            str,
            Option(
                "online: a box is trained on the level where its loss is smallest; heuristic: on "
                "a level chosen by its size",
                source="FSAF, section 3.3",
            ),
        ] = "online",
        effective_scale: Annotated[
            float,
            Option(
                "side of a box's effective region, relative to the box", source="FSAF, section 3.2"
            ),
        ] = 0.2,
        ignore_scale: Annotated[
            float,
            Option("side of the ignoring region, relative to the box", source="FSAF, section 3.2"),
        ] = 0.5,
        canonical_level: Annotated[
            int,
            Option(
                "level of a box of 224 pixels: 5 for P3-P7, 4 as in FPN",
                source="FSAF, section 3.3",
                only={"selection": ("heuristic",)},
            ),
        ] = 5,
        unselected: Annotated[
            str,
            Option(
                "training of a box's effective points on other levels: other_classes (negative for "
                "all classes but the box's), background or ignore"
            ),
        ] = "other_classes",
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ) -> None:
        if selection not in ("online", "heuristic"):
            raise ValueError(
                f"ASSIGNER.SELECTION must be 'online' or 'heuristic', got {selection!r}"
            )
        if not 0 < effective_scale <= ignore_scale:
            raise ValueError(
                "ASSIGNER.EFFECTIVE_SCALE must be positive and at most IGNORE_SCALE, "
                f"got {effective_scale} and {ignore_scale}"
            )
        if unselected not in UNSELECTED:
            raise ValueError(f"ASSIGNER.UNSELECTED must be one of {UNSELECTED}, got {unselected!r}")
        self.num_classes = num_classes
        self.selection = selection
        self.effective_scale = effective_scale
        self.ignore_scale = ignore_scale
        self.canonical_level = canonical_level
        self.unselected = unselected
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

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
            anchors: (R, 4) squares around the points.
            prediction: ``cls_logits`` and ``boxes`` decide the level ("online").
        """
        offsets = ground_truth.offsets
        parts = []
        for i, size in enumerate(ground_truth.counts):
            rows = slice(offsets[i], offsets[i] + size)
            boxes, classes = ground_truth.boxes[rows], ground_truth.classes[rows]
            parts.append(self._one_image(priors, anchors, boxes, classes, prediction, i))
        labels, matched, gt_index, excluded = (torch.stack(x) for x in zip(*parts, strict=True))
        # A point has no overlap; use the square around it where it is foreground.
        ious = ops.box_iou_aligned(matched.flatten(0, 1), anchors.repeat(len(parts), 1))
        foreground = (labels >= 0) & (labels < self.num_classes)
        return Targets(
            labels=labels,
            matched_gt_boxes=matched,
            matched_ious=torch.where(foreground, ious.view(labels.shape), 0.0),
            gt_index=gt_index,
            num_classes=self.num_classes,
            excluded_class=excluded,
        )

    def _one_image(
        self,
        priors: Priors,
        anchors: Tensor,
        boxes: Tensor,
        classes: Tensor,
        prediction: StagePrediction | None,
        image: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Labels (R,), matched boxes (R, 4), gt index (R,) and excluded class (R,)."""
        num_points, num_boxes = len(anchors), len(boxes)
        regions = self._regions(priors, anchors, boxes)
        if self.selection == "heuristic":
            chosen = self._level_by_size(priors, boxes)
        else:
            if prediction is None:
                raise ValueError("SELECTION 'online' needs a prediction")
            loss = self._point_losses(boxes, classes, prediction, image)
            chosen = self._level_by_loss(regions, loss, len(priors.anchors_per_level))
        on_level = chosen == regions.levels[:, None]
        inside = regions.effective & on_level
        owner = regions.smallest(inside | (regions.nearest & on_level & ~inside.any(dim=0)))
        foreground = owner < num_boxes
        # Points of boxes that are trained on another level.
        other = torch.where(foreground, num_boxes, regions.smallest(regions.effective))
        unselected = other < num_boxes
        # An extra row stands for "no box" in every lookup below.
        classes = F.pad(classes, (0, 1), value=self.num_classes)
        near = (chosen - regions.levels[:, None]).abs() <= 1
        ignored = (regions.ring & near).any(dim=1) & ~foreground
        if self.unselected == "ignore":
            ignored = ignored | unselected
        labels = torch.where(ignored, IGNORE, classes[owner])
        matched = torch.where(foreground[:, None], F.pad(boxes, (0, 0, 0, 1))[owner], anchors)
        excluded = torch.full((num_points,), -1, device=labels.device)
        if self.unselected == "other_classes":
            excluded = torch.where(unselected, classes[other], excluded)
        index = torch.where(foreground, owner, torch.where(unselected, other, -1))
        return labels, matched, index, excluded

    def _regions(self, priors: Priors, anchors: Tensor, boxes: Tensor) -> _Regions:
        points = (anchors[:, :2] + anchors[:, 2:]) / 2
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        size = boxes[:, 2:] - boxes[:, :2]
        distance = (points[:, None] - centre).abs()
        effective = (distance <= size * (self.effective_scale / 2)).all(dim=-1)
        inside = (distance <= size * (self.ignore_scale / 2)).all(dim=-1)
        nearest = distance.square().sum(dim=-1).split(priors.anchors_per_level)
        levels = [
            torch.full((n,), i, device=boxes.device) for i, n in enumerate(priors.anchors_per_level)
        ]
        return _Regions(
            effective=effective,
            ring=inside & ~effective,
            nearest=torch.cat([_nearest(d) for d in nearest]),
            area=size.prod(dim=-1),
            levels=torch.cat(levels),
        )

    def _point_losses(
        self, boxes: Tensor, classes: Tensor, prediction: StagePrediction, image: int
    ) -> Tensor:
        """(R, M) focal loss over the K classes plus ``-ln IoU`` of each point with each box."""
        logits = prediction.cls_logits[image].float()
        negative = (1 - self.focal_alpha) * _focal(logits, self.focal_gamma)
        own = logits[:, classes]
        positive = self.focal_alpha * _focal(-own, self.focal_gamma)
        focal = negative.sum(dim=1, keepdim=True) - negative[:, classes] + positive
        iou = ops.pairwise_box_iou(predicted_boxes(self, prediction)[image], boxes)
        return focal - iou.clamp(min=1e-6).log()

    @staticmethod
    def _level_by_loss(regions: _Regions, loss: Tensor, num_levels: int) -> Tensor:
        """(M,) the level with the smallest mean loss over a box's points.

        These are the points in its effective region; for a box that has none anywhere, the nearest
        one of each level.
        """
        points = regions.effective | (regions.nearest & ~regions.effective.any(dim=0))
        total = loss.new_zeros(num_levels, loss.shape[1])
        count = total.index_add(0, regions.levels, points.to(loss.dtype))
        total = total.index_add(0, regions.levels, torch.where(points, loss, 0.0))
        # If predictions are NaN there is no best level; the first level with a NaN is as good as
        # any, since the loss itself will be NaN.
        return torch.where(count > 0, total / count, math.inf).argmin(dim=0)

    def _level_by_size(self, priors: Priors, boxes: Tensor) -> Tensor:
        """(M,) levels by size (Eq. 3): the coarsest that exists up to it, or the finest."""
        size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=-1).sqrt()
        level = torch.floor(self.canonical_level + torch.log2(size.clamp(min=1e-6) / 224))
        coarser = [level >= math.floor(math.log2(stride)) for stride in priors.strides[1:]]
        return sum((x.long() for x in coarser), torch.zeros_like(level, dtype=torch.int64))


def _focal(wrong: Tensor, gamma: float) -> Tensor:
    """Focal loss without its weight of logits ``wrong``, whose sigmoids should be 0."""
    return torch.sigmoid(wrong) ** gamma * F.softplus(wrong)


def _nearest(distance: Tensor) -> Tensor:
    """(R, M) bool: the smallest entry of each column (ties: the first)."""
    index = distance.argmin(dim=0)
    return torch.arange(len(distance), device=distance.device)[:, None] == index
