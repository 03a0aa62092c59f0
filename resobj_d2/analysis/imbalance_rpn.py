"""The imbalance of region proposal networks."""

from __future__ import annotations

import torch
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F

from resobj_d2.modeling.branches.objectness import ObjectnessPrediction
from resobj_d2.modeling.rpn import ResObjRPN
from resobj_d2.structures import Targets

from .imbalance_tables import Imbalance
from .imbalance_terms import Term, add_levels, add_term, objectness_terms

__all__ = ["add_anchors", "add_proposal_network"]

NAME = "rpn"


def add_proposal_network(result: Imbalance, model: torch.nn.Module, inputs: dict) -> None:
    """Add one image's losses of the objectness of the anchors.

    Args:
        result: is changed.
        model: Detectron2's ``GeneralizedRCNN`` or ``ProposalNetwork``, in training mode.
        inputs: as the model trains on it.
    """
    images = model.preprocess_image([inputs])
    features = model.backbone(images.tensor)
    result.images += 1
    instances = inputs["instances"].to(images.tensor.device)
    add_anchors(result, model.proposal_generator, features, instances)


def add_anchors(
    result: Imbalance, rpn: RPN, features: dict[str, Tensor], instances: Instances
) -> None:
    """The same from the feature maps of the image.

    Args:
        result: is changed, but for the number of images.
        rpn: in training mode.
        features: (1, C, H, W) by name.
        instances: what the image has.
    """
    maps = [features[name] for name in rpn.in_features]
    if isinstance(rpn, ResObjRPN) and rpn.sampler is not None:
        _add_residual(result, rpn, maps, [instances])
    else:
        _add_plain(result, rpn, maps, [instances])


def _add_residual(result: Imbalance, rpn: ResObjRPN, maps: list[Tensor], instances: list) -> None:
    anchors = rpn.anchor_generator(maps)
    predicted, deltas = rpn.rpn_head.predict(maps)
    leaves = ObjectnessPrediction(
        predicted.logits.detach().requires_grad_(), predicted.residuals.detach().requires_grad_()
    )
    per_level = [len(x) for x in anchors]
    boxes = list(deltas.flatten().detach().split(per_level, dim=1))
    targets = rpn.assign(anchors, maps, instances)
    with torch.enable_grad():
        losses = rpn.losses_of(anchors, maps, leaves, boxes, instances)
    add_levels(result, (NAME, 0), targets, per_level)
    branch = rpn.rpn_head.objectness
    if branch is None:
        _add_cross_entropy(result, leaves.logits, losses["loss_rpn_cls"], targets)
        return
    terms = objectness_terms(branch, leaves, targets.binary_labels, per_level, prefix="loss_rpn_")
    for term in terms:
        add_term(result, NAME, term, losses[term.loss], targets)


def _add_plain(result: Imbalance, rpn: RPN, maps: list[Tensor], instances: list) -> None:
    """Detectron2's own, whose anchors are sampled as they are labelled."""
    anchors = rpn.anchor_generator(maps)
    logits, deltas = rpn.rpn_head(maps)
    # (1, A, H, W) to (1, H * W * A), as the anchors are ordered; deltas likewise.
    flat = [x.permute(0, 2, 3, 1).flatten(1).detach() for x in logits]
    leaf = torch.cat(flat, dim=1).requires_grad_()
    boxes = [x.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3).detach() for x in deltas]
    labels, matched = rpn.label_and_sample_anchors(anchors, instances)
    per_level = [x.shape[1] for x in flat]
    with torch.enable_grad():
        split = list(leaf.split(per_level, dim=1))
        losses = rpn.losses(anchors, split, labels, boxes, matched)
    binary = torch.stack(labels).long()
    targets = Targets(
        labels=torch.where(binary == 1, 0, torch.where(binary == 0, 1, -1)),
        matched_gt_boxes=torch.stack(list(matched)),
        matched_ious=torch.zeros_like(leaf),
        gt_index=torch.full_like(binary, -1),
        num_classes=1,
    )
    add_levels(result, (NAME, 0), targets, per_level)
    _add_cross_entropy(result, leaf, losses["loss_rpn_cls"], targets)


def _add_cross_entropy(result: Imbalance, logits: Tensor, loss: Tensor, targets: Targets) -> None:
    term = Term(
        loss="loss_rpn_cls",
        value="objectness",
        leaves=[logits],
        sizes=lambda gradients: gradients[0].abs(),
        probability=torch.sigmoid(logits.detach().float()),
        per_anchor=F.softplus(torch.where(targets.foreground, -logits, logits).detach().float()),
    )
    add_term(result, NAME, term, loss, targets)
