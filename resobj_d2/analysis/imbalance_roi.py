"""The imbalance of RoI heads: of all proposals, and of those that were sampled for training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from torch import Tensor, nn
from torch.nn import functional as F

from resobj_d2.compat import scores_are_sigmoids
from resobj_d2.modeling.roi.heads import proposal_labels
from resobj_d2.structures import Targets

from .imbalance_rpn import add_anchors
from .imbalance_tables import Imbalance
from .imbalance_terms import Term, add_levels, add_term

__all__ = ["add_two_stage_detector"]

ALL, SAMPLED = "proposals", "roi"
"""Names of their streams."""


def add_two_stage_detector(result: Imbalance, model: nn.Module, inputs: dict) -> None:
    """Add one image: the losses of its anchors and of its RoIs.

    Args:
        result: is changed.
        model: Detectron2's ``GeneralizedRCNN``, in training mode.
        inputs: as the model trains on it.
    """
    images = model.preprocess_image([inputs])
    features = model.backbone(images.tensor)
    instances = inputs["instances"].to(images.tensor.device)
    result.images += 1
    if model.proposal_generator is None:
        proposals = [inputs["proposals"].to(images.tensor.device)]
    else:
        add_anchors(result, model.proposal_generator, features, instances)
        proposals, _ = model.proposal_generator(images, features, [instances])
    heads = model.roi_heads
    cascade = isinstance(heads.box_predictor, nn.ModuleList)
    known = proposals
    if heads.proposal_append_gt:
        known = add_ground_truth_to_proposals([instances], proposals)
    boxes = known[0].proposal_boxes
    labels, _ = proposal_labels(heads, pairwise_iou(instances.gt_boxes, boxes), instances)
    _add_levels(result, (ALL, 0), heads, boxes, labels)
    for stage, trained in enumerate(_trained(heads, images, features, proposals, [instances])):
        boxes, labels = trained.rois.proposal_boxes, trained.rois.gt_classes
        _add_levels(result, (SAMPLED, stage), heads, boxes, labels)
        if len(boxes):
            suffix = f"_stage{stage}" if cascade else ""
            term = _term(trained, suffix)
            add_term(result, SAMPLED, term, trained.loss, _targets(heads, labels))


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """What one stage of the heads is trained on.

    Attributes:
        rois: of the image, with ``gt_classes``.
        logits: (R, K + 1), a leaf.
        loss: of the classes.
        sigmoid: whether the classes are apart, instead of a softmax.
    """

    rois: Instances
    logits: Tensor
    loss: Tensor
    sigmoid: bool


def _trained(
    heads: nn.Module,
    images: ImageList,
    features: dict[str, Tensor],
    proposals: list[Instances],
    targets: list[Instances],
) -> list[_Trained]:
    """Of every stage, from a forward of the heads, which samples and labels as in training."""
    predictors = heads.box_predictor
    stages = list(predictors) if isinstance(predictors, nn.ModuleList) else [predictors]
    found: list[_Trained] = []
    with contextlib.ExitStack() as stack:
        for predictor in stages:
            stack.enter_context(_observed(predictor, found))
        heads(images, features, proposals, targets)
    return found


@contextlib.contextmanager
def _observed(predictor: nn.Module, found: list[_Trained]) -> Iterator[None]:
    """Note what a predictor's losses are made of, and the graph from its class logits."""
    losses = predictor.losses

    def noting(predictions: tuple[Tensor, ...], proposals: list[Instances]) -> dict[str, Tensor]:
        logits = predictions[0].detach().requires_grad_()
        with torch.enable_grad():
            result = losses((logits, *predictions[1:]), proposals)
        sigmoid = scores_are_sigmoids(predictor)
        one = _Trained(rois=proposals[0], logits=logits, loss=result["loss_cls"], sigmoid=sigmoid)
        found.append(one)
        return result

    predictor.losses = noting
    try:
        yield
    finally:
        del predictor.losses  # the class's own is below it


def _term(trained: _Trained, suffix: str) -> Term:
    logits = trained.logits.detach().float()
    probability, per_roi = torch.softmax(logits, dim=1), None
    if trained.sigmoid:
        probability = torch.sigmoid(logits)
    else:
        per_roi = F.cross_entropy(logits, trained.rois.gt_classes, reduction="none")[None]
    return Term(
        loss=f"loss_cls{suffix}",
        value=f"cls{suffix}",
        leaves=[trained.logits],
        sizes=lambda gradients: gradients[0].abs().sum(dim=1)[None],
        probability=probability[:, : _classes_of(logits)].amax(dim=1)[None],
        per_anchor=per_roi,
    )


def _classes_of(logits: Tensor) -> int:
    """K; the last logit is that of background."""
    return logits.shape[1] - 1


def _targets(heads: nn.Module, labels: Tensor) -> Targets:
    nothing = torch.zeros(1, len(labels), device=labels.device)
    return Targets(
        labels=labels[None],
        matched_gt_boxes=nothing[..., None].expand(-1, -1, 4),
        matched_ious=nothing,
        gt_index=torch.full_like(labels, -1)[None],
        num_classes=heads.num_classes,
    )


def _add_levels(
    result: Imbalance, key: tuple[str, int], heads: nn.Module, boxes: Boxes, labels: Tensor
) -> None:
    """By the level that each RoI is pooled from; all levels have a row."""
    pooler = heads.box_pooler if hasattr(heads, "box_pooler") else heads.pooler
    number = len(pooler.level_poolers)
    levels = torch.zeros_like(labels)
    if number > 1 and len(boxes):
        levels = assign_boxes_to_levels(
            [boxes],
            pooler.min_level,
            pooler.max_level,
            pooler.canonical_box_size,
            pooler.canonical_level,
        )
    counts = torch.bincount(levels, minlength=number).tolist()
    order = torch.argsort(levels, stable=True)
    add_levels(result, key, _targets(heads, labels[order]), counts)
