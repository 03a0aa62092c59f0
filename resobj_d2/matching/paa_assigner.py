"""Probabilistic anchor assignment (Kim and Lee 2020, "PAA")."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from resobj_d2 import ops
from resobj_d2.options import Option
from resobj_d2.structures import GroundTruth, Priors, StagePrediction, Targets

from .base import Assigner, predicted_boxes
from .build import ASSIGNER_REGISTRY
from .point_assigners import largest, smallest_of_levels, targets_of_owners

__all__ = ["PAAAssigner", "low_component"]

# The authors' code calls scikit-learn with these; a column that has converged stays as it is, since
# later steps would still move candidates from one Gaussian to the other.
CONVERGED = 1e-3  # change of the mean log likelihood
SMALLEST_VARIANCE = 1e-6
# It stops after 100; candidates of an object nearly always converge within this.
EM_STEPS = 30
# Two candidates alone in a Gaussian are equally likely, up to rounding.
EQUALLY_LIKELY = 1e-4


@ASSIGNER_REGISTRY.register()
class PAAAssigner(Assigner):
    """Each object splits its anchors by their loss, with two Gaussians (PAA, section 3.2).

    Anchors belong to the object they overlap most, if by at least ``candidate_iou``, and to an
    object whose best anchor they are. The ``candidates`` of each level with the smallest loss,
    focal loss plus ``box_weight (1 - GIoU)`` of what they predict, are candidates. Of the two
    Gaussians fitted to their losses (expectation maximisation from the smallest and largest), an
    object is trained on the candidates of the lower one, up to the most likely of these; all others
    are background.

    Args:
        num_classes: K.
        candidates: see above.
        candidate_iou: see above.
        box_weight: weight of the box loss in an anchor's loss.
        focal_alpha, focal_gamma: of the focal loss in it.
    """

    needs_predictions = True
    labels_by_iou = False

    def __init__(
        self,
        *,
        num_classes: int,
        candidates: Annotated[
            int, Option("candidates of an object on each level", source="PAA, section 3.2")
        ] = 9,
        candidate_iou: Annotated[
            float,
            Option("smallest IoU of an object's candidates", source="PAA, section 3.2"),
        ] = 0.1,
        box_weight: Annotated[
            float, Option("weight of the box loss in an anchor's loss", source="PAA, Eq. 5")
        ] = 1.3,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ) -> None:
        if candidates < 1 or not 0 < candidate_iou <= 1 or box_weight < 0:
            raise ValueError(
                "ASSIGNER.CANDIDATES must be at least 1, CANDIDATE_IOU in (0, 1] and BOX_WEIGHT at "
                f"least 0, got {candidates}, {candidate_iou} and {box_weight}"
            )
        self.num_classes = num_classes
        self.candidates = candidates
        self.candidate_iou = candidate_iou
        self.box_weight = box_weight
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
            anchors: (R, 4).
            prediction: ``cls_logits`` and ``boxes``.
        """
        predicted = predicted_boxes(self, prediction)
        if prediction is None:
            raise ValueError("PAAAssigner needs a prediction")
        logits = prediction.cls_logits.float()
        limits = [self.candidates * n for n in priors.num_anchors]

        def owners(image: int, boxes: Tensor, classes: Tensor) -> Tensor:
            ious = ops.pairwise_box_iou(anchors, boxes)
            best = F.pad(ious, (0, 0, 0, 1)).amax(dim=0)
            usable = (ious >= self.candidate_iou) | ((ious == best) & (ious > 0))
            owner = largest(torch.where(usable, ious, -torch.inf))
            mine = owner[:, None] == torch.arange(len(boxes), device=owner.device)
            loss = self._losses(logits[image], predicted[image], boxes, classes)
            loss = torch.where(mine, loss, torch.inf)
            index = smallest_of_levels(loss.split(priors.anchors_per_level), limits)
            chosen = low_component(loss.gather(0, index))
            kept = torch.zeros_like(mine).scatter(0, index, chosen)
            return torch.where(kept.any(dim=1), owner, len(boxes))

        return targets_of_owners(owners, anchors, ground_truth, self.num_classes)

    def _losses(self, logits: Tensor, predicted: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
        """(R, M) loss of each anchor as each object."""
        negative = (1 - self.focal_alpha) * _focal(logits, self.focal_gamma)
        own = logits[:, classes]
        focal = negative.sum(dim=1, keepdim=True) - negative[:, classes]
        focal = focal + self.focal_alpha * _focal(-own, self.focal_gamma)
        giou = ops.pairwise_box_iou(predicted, boxes, kind="giou")
        return focal + self.box_weight * (1 - giou)


def _focal(wrong: Tensor, gamma: float) -> Tensor:
    return torch.sigmoid(wrong) ** gamma * F.softplus(wrong)


def low_component(losses: Tensor) -> Tensor:
    """(C, M) which values belong to the lower of two Gaussians fitted to each column.

    Of those, the values up to the most likely one (PAA, Figure 3c). A single value does.

    Args:
        losses: (C, M); infinite for values that are not there.
    """
    there = torch.isfinite(losses)
    x = torch.where(there, losses, 0.0)
    low = torch.where(there, losses, torch.inf).amin(dim=0)
    high = torch.where(there, losses, -torch.inf).amax(dim=0)
    means = torch.nan_to_num(torch.stack((low, high)), posinf=0.0, neginf=0.0)  # (2, M)
    variances, weights = torch.ones_like(means), torch.full_like(means, 0.5)
    count = there.sum(dim=0).clamp(min=1)
    fit = torch.full_like(low, -torch.inf)
    moves = torch.ones_like(low, dtype=torch.bool)
    for _ in range(EM_STEPS):
        density = _log_density(x, means, variances, weights)
        share = torch.where(there, torch.softmax(density, dim=0), 0.0)
        total = share.sum(dim=1) + 10 * torch.finfo(x.dtype).eps
        centre = (share * x).sum(dim=1) / total
        spread = (share * (x - centre[:, None]).square()).sum(dim=1)
        means = torch.where(moves, centre, means)
        variances = torch.where(moves, spread / total + SMALLEST_VARIANCE, variances)
        weights = torch.where(moves, total / count, weights)
        earlier, fit = fit, torch.where(there, density.logsumexp(dim=0), 0.0).sum(dim=0) / count
        moves = moves & ((fit - earlier).abs() >= CONVERGED)
    density = _log_density(x, means, variances, weights)  # (2, C, M)
    lower = there & (density[0] >= density[1])
    likelihood = torch.where(lower, density.logsumexp(dim=0), -torch.inf)
    likeliest = likelihood >= likelihood.amax(dim=0) - EQUALLY_LIKELY
    limit = torch.where(lower & likeliest, x, -torch.inf).amax(dim=0)
    return lower & (x <= limit) | there & (count == 1)


def _log_density(x: Tensor, means: Tensor, variances: Tensor, weights: Tensor) -> Tensor:
    """(2, C, M) log of weight times density of values (C, M) under Gaussians (2, M)."""
    distance = (x - means[:, None]).square() / variances[:, None]
    scale = weights.log() - 0.5 * (variances.log() + math.log(2 * math.pi))
    return scale[:, None] - 0.5 * distance
