"""Label assignment by class score and overlap together (Feng et al. 2021, "TOOD")."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from resobj_d2 import ops
from resobj_d2.options import Option
from resobj_d2.structures import GroundTruth, Priors, StagePrediction, Targets

from .base import Assigner, predicted_boxes
from .build import ASSIGNER_REGISTRY
from .point_assigners import largest, sides_to_points, targets_of_owners

__all__ = ["TaskAlignedAssigner"]


@ASSIGNER_REGISTRY.register()
class TaskAlignedAssigner(Assigner):
    """The anchors that classify and locate an object best (TOOD, section 3.2).

    For each object the ``size`` anchors with the largest ``t = s^alpha u^beta`` are foreground,
    among those whose centres lie inside it; s is the predicted score of its class and u the IoU of
    the predicted box with it. An anchor of several objects belongs to the one that its box overlaps
    most; all others are background.

    ``Targets.quality`` is t, scaled so that each object's largest is its anchors' largest u. It is
    the target of the class score, and the factor of an anchor's box loss (``box_weights``).

    Args:
        num_classes: K.
        size: the paper's m.
    """

    needs_predictions = True
    labels_by_iou = False
    weighs_boxes = True

    def __init__(
        self,
        *,
        num_classes: int,
        size: Annotated[
            int, Option("anchors per object", key="TOPK", source="TOOD, section 4.1")
        ] = 13,
        alpha: Annotated[
            float, Option("exponent of the class score", key="ALPHA", source="TOOD, Eq. 1")
        ] = 1.0,
        beta: Annotated[
            float, Option("exponent of the IoU", key="BETA", source="TOOD, Eq. 1")
        ] = 6.0,
    ) -> None:
        if size < 1 or alpha < 0 or beta < 0:
            raise ValueError(
                "ASSIGNER.TOPK must be at least 1, ALPHA and BETA at least 0, "
                f"got {size}, {alpha} and {beta}"
            )
        self.num_classes = num_classes
        self.size = size
        self.alpha = alpha
        self.beta = beta

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
            prediction: ``cls_logits`` and ``boxes``.
        """
        predicted = predicted_boxes(self, prediction)
        if prediction is None:
            raise ValueError("TaskAlignedAssigner needs a prediction")
        logits = prediction.cls_logits.float()
        qualities = []

        def owners(image: int, boxes: Tensor, classes: Tensor) -> Tensor:
            ious = ops.pairwise_box_iou(predicted[image], boxes)
            # Which is 0 for a box of NaN.
            diverged = ~predicted[image].isfinite().all(dim=1, keepdim=True)
            ious = torch.where(diverged, torch.nan, ious)
            scores = logits[image][:, classes].sigmoid()
            metric = scores**self.alpha * ious**self.beta
            inside = sides_to_points(anchors, boxes).amin(dim=-1) > 0
            # NaN, from predictions that have diverged, ranks first and shows in the loss.
            metric = torch.where(inside, metric, -1.0)
            count = min(self.size, len(anchors))
            best, index = metric.topk(count, dim=0)
            chosen = torch.zeros_like(inside).scatter(0, index, ~(best <= 0))
            owner = largest(torch.where(chosen, ious, -torch.inf))
            columns = torch.arange(len(boxes), device=owner.device)
            own = owner[:, None] == columns
            metric, ious = torch.where(own, metric, 0.0), torch.where(own, ious, 0.0)
            scale = _max(ious) / _max(metric).clamp(min=torch.finfo(metric.dtype).tiny)
            qualities.append((metric * scale).sum(dim=1))
            return owner

        targets = targets_of_owners(owners, anchors, ground_truth, self.num_classes)
        targets.quality = targets.box_weights = torch.stack(qualities)
        return targets


def _max(values: Tensor) -> Tensor:
    """(M,) the largest value of each column, all at least 0."""
    return torch.cat((values, values.new_zeros(1, values.shape[1]))).amax(dim=0)
