"""Proposals and detections of a two-stage detector, in shapes that do not depend on the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from torch import Tensor, nn

from resobj_d2.compat import scores_are_sigmoids
from resobj_d2.modeling.roi.box_predictor import ResObjBoxPredictor
from resobj_d2.modeling.rpn import ResObjRPNHead
from resobj_d2.modeling.suppression import Suppression
from resobj_d2.structures import LevelMaps

from .suppression import ABSENT, best, highest, keep_greedy, suppressed_scores

__all__ = [
    "check_two_stage",
    "pool",
    "propose",
    "roi_predictions",
    "select_of_rois",
    "suppression_of",
]


def check_two_stage(model: GeneralizedRCNN) -> None:
    """
    Raises:
        ValueError: a part of the model cannot be exported; the message names it.
    """
    rpn, heads = model.proposal_generator, model.roi_heads
    if not isinstance(rpn, RPN) or rpn.anchor_generator.box_dim != 4:
        raise ValueError(
            "export of a two-stage detector knows MODEL.PROPOSAL_GENERATOR.NAME RPN and ResObjRPN, "
            f"got {type(rpn).__name__}"
        )
    if not isinstance(heads, StandardROIHeads) or isinstance(heads, CascadeROIHeads):
        raise ValueError(
            "export of a two-stage detector knows MODEL.ROI_HEADS.NAME StandardROIHeads and "
            f"ResObjROIHeads, got {type(heads).__name__}"
        )
    for key, enabled in (("MASK_ON", heads.mask_on), ("KEYPOINT_ON", heads.keypoint_on)):
        if enabled:
            raise ValueError(f"an exported file returns boxes alone: set MODEL.{key} False")
    if not all(isinstance(x, ROIAlign) for x in heads.box_pooler.level_poolers):
        raise ValueError(
            "export knows MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIAlign and ROIAlignV2, got "
            f"{type(heads.box_pooler.level_poolers[0]).__name__}"
        )
    if type(heads.box_predictor) not in (FastRCNNOutputLayers, ResObjBoxPredictor):
        raise ValueError(
            "export knows the box predictors FastRCNNOutputLayers and ResObjBoxPredictor, got "
            f"{type(heads.box_predictor).__name__}"
        )
    if heads.box_predictor.test_topk_per_image < 1:
        raise ValueError(
            "an exported file returns a fixed number of rows: set TEST.DETECTIONS_PER_IMAGE to at "
            f"least 1, got {heads.box_predictor.test_topk_per_image}"
        )


def suppression_of(predictor: FastRCNNOutputLayers) -> Suppression:
    """How the detector removes duplicates of an object."""
    own = getattr(predictor, "suppression", None)
    return own or Suppression(method="greedy", threshold=predictor.test_nms_thresh)


def propose(rpn: RPN, maps: Sequence[Tensor], image_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The proposals of a batch, as Detectron2's ``find_top_rpn_proposals`` finds them.

    Args:
        rpn: in evaluation mode.
        maps: (N, C, H_l, W_l) of each level.
        image_sizes: (N, 2), (height, width) without padding.

    Returns:
        Boxes (N, P, 4) clipped to their images, best first, and whether there is one, (N, P) bool;
        boxes are 0 where there is none.
    """
    anchors = _anchors(rpn.anchor_generator, maps)
    predictions = _rpn_predictions(rpn.rpn_head, list(maps))
    levels = [_level_proposals(rpn, *level) for level in zip(anchors, *predictions, strict=True)]
    scores, boxes = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
    boxes = _clip(boxes, image_sizes)
    # An infinite number less itself is no number; so is none less itself.
    finite = ((boxes - boxes) == 0).all(dim=2) & ((scores - scores) == 0)
    valid = finite & (boxes[..., 2:] - boxes[..., :2] > rpn.min_box_size).all(dim=2)
    # Logits have no lowest value that could stand for "absent", so their ranks are the scores.
    topk = rpn.pre_nms_topk[False]
    count = topk * len(levels)
    valid_scores, order = highest(torch.where(valid, scores, -torch.inf), count)
    rank = torch.arange(count, 0, -1, device=scores.device, dtype=torch.float32)
    ranks = torch.where(valid_scores > -torch.inf, rank, ABSENT)
    boxes = torch.where(valid[..., None], boxes, 0.0)
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    most = rpn.post_nms_topk[False]
    keep = keep_greedy(boxes, ranks, order // topk, len(levels), rpn.nms_thresh, most)
    boxes, ranks, _ = best(boxes, torch.where(keep, ranks, ABSENT), order, most)
    present = ranks > ABSENT
    return torch.where(present[..., None], boxes, 0.0), present


def _anchors(generator: DefaultAnchorGenerator, maps: Sequence[Tensor]) -> list[Tensor]:
    """(R_l, 4) of each level, as the generator makes them, but for maps of one cell too."""
    result = []
    for cell, stride, x in zip(generator.cell_anchors, generator.strides, maps, strict=True):
        y, x = (
            (torch.arange(side, device=cell.device) + generator.offset) * stride
            for side in x.shape[-2:]
        )
        y, x = torch.meshgrid(y, x, indexing="ij")
        shifts = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4).to(cell.dtype)
        result.append((shifts + cell).reshape(-1, 4))
    return result


def _rpn_predictions(
    head: nn.Module, maps: list[Tensor]
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Of each level, the logits (N, R_l) and the deltas (N, R_l, 4)."""
    if isinstance(head, ResObjRPNHead):
        prediction, boxes = head.predict(maps, every_step=False)
        deltas = [LevelMaps([x], 4).flatten() for x in boxes.levels]
        sizes = [x.shape[1] for x in deltas]
        return head.score_logits(prediction).split(sizes, dim=1), deltas
    logits, boxes = head(maps)
    return (
        [LevelMaps([x], 1).flatten().squeeze(2) for x in logits],
        [LevelMaps([x], 4).flatten() for x in boxes],
    )


def _level_proposals(
    rpn: RPN, anchors: Tensor, logits: Tensor, deltas: Tensor
) -> tuple[Tensor, Tensor]:
    """The ``PRE_NMS_TOPK_TEST`` best of a level: logits (N, C) and boxes (N, C, 4)."""
    topk = rpn.pre_nms_topk[False]
    # So that a level of any size has `topk` of them.
    logits = torch.nn.functional.pad(logits.float(), (0, topk), value=-torch.inf)
    values, index = highest(logits, topk)
    index = torch.where(values > -torch.inf, index, 0)
    deltas = deltas.gather(1, index[..., None].expand(-1, -1, 4))
    boxes = rpn.box2box_transform.apply_deltas(deltas.flatten(0, 1), anchors[index].flatten(0, 1))
    return values, boxes.unflatten(0, (-1, topk))


def _clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """(N, R, 4) clipped to images of (N, 2), (height, width)."""
    limit = torch.cat((sizes, sizes), dim=1).flip(1)[:, None].to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limit)


def pool(pooler: ROIPooler, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """The features (N * P, C, S, S) of boxes (N, P, 4), as ``ROIPooler`` gives them.

    Each level pools all boxes; those of other levels are points there, which cost little.
    """
    image = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
    image = image[:, None, None].expand(-1, boxes.shape[1], 1)
    rois = torch.cat((image, boxes), dim=2).flatten(0, 1)
    if len(maps) == 1:
        return pooler.level_poolers[0](maps[0], rois)
    sides = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
    level = torch.floor(
        pooler.canonical_level + torch.log2(sides / pooler.canonical_box_size + 1e-8)
    )
    level = level.clamp(min=pooler.min_level, max=pooler.max_level) - pooler.min_level
    pooled: Tensor | float = 0.0
    for number, (layer, features) in enumerate(zip(pooler.level_poolers, maps, strict=True)):
        own = level == number
        here = layer(features, torch.where(own[:, None], rois, 0.0))
        pooled = pooled + torch.where(own[:, None, None, None], here, 0.0)
    return pooled


def roi_predictions(
    heads: StandardROIHeads, features: dict[str, Tensor], boxes: Tensor, image_sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """What the second stage predicts for proposals (N, P, 4).

    Returns:
        Scores (N, P, K), 0 where one of the proposal's numbers is not finite, and the boxes
        (N, P, K, 4) of each class, clipped to their images.
    """
    per_image = boxes.shape[1]
    pooled = pool(heads.box_pooler, [features[name] for name in heads.box_in_features], boxes)
    predictor = heads.box_predictor
    predictions = predictor(heads.box_head(pooled))
    rois = boxes.flatten(0, 1)
    scores = _probabilities(predictor, predictions)
    decoded = predictor.box2box_transform.apply_deltas(predictions[1], rois)
    finite = ((decoded - decoded) == 0).all(dim=1) & ((scores - scores) == 0).all(dim=1)
    scores = torch.where(finite[:, None], scores[:, :-1], 0.0)
    decoded = torch.where(finite[:, None], decoded, 0.0)
    classes = scores.shape[1]
    decoded = decoded.unflatten(1, (-1, 4)).expand(-1, classes, 4)
    decoded = _clip(decoded.reshape(-1, per_image * classes, 4), image_sizes)
    return scores.unflatten(0, (-1, per_image)), decoded.unflatten(1, (per_image, classes))


def _probabilities(predictor: FastRCNNOutputLayers, predictions: Sequence[Tensor]) -> Tensor:
    """(R, K + 1), as ``predict_probs``, whose split by images would tie a trace to their number."""
    if scores_are_sigmoids(predictor):
        probabilities = predictions[0].sigmoid()
    else:
        probabilities = predictions[0].softmax(dim=1)
    if getattr(predictor, "quality_loss", None) is None:
        return probabilities
    return predictor.with_quality(probabilities, predictions[2])


def select_of_rois(
    scores: Tensor,
    boxes: Tensor,
    *,
    suppression: Suppression,
    threshold: float,
    max_detections: int,
    for_onnx: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The detections of a batch, best first.

    Args:
        scores: (N, P, K), ``ABSENT`` for no proposal.
        boxes: (N, P, K, 4).
        suppression: removes duplicates within a class.
        threshold: detections must score above it.
        max_detections: D.
        for_onnx: in operators that ONNX has too; the suppression must be greedy.

    Returns:
        Boxes (N, D, 4), scores and classes (N, D); scores are ``ABSENT`` where there are fewer.
    """
    num_classes = scores.shape[2]
    scores = torch.where(scores > threshold, scores, ABSENT)
    if for_onnx:
        # Each class of each image on its own, since it has its own boxes.
        per_class = scores.transpose(1, 2).flatten(0, 1)  # (N * K, P)
        keep = keep_greedy(
            boxes.transpose(1, 2).flatten(0, 1),
            per_class,
            torch.zeros_like(per_class, dtype=torch.int64),
            1,
            suppression.threshold,
            max_detections,
        )
        keep = keep.unflatten(0, (-1, num_classes)).transpose(1, 2)
        flat = torch.where(keep, scores, ABSENT).flatten(1)
    else:
        flat = _suppressed(scores.flatten(1), boxes.flatten(1, 2), num_classes, suppression,
                           threshold)  # fmt: skip
    classes = torch.arange(num_classes, device=scores.device).expand_as(scores)
    return best(boxes.flatten(1, 2), flat, classes.flatten(1), max_detections)


def _suppressed(
    scores: Tensor, boxes: Tensor, num_classes: int, suppression: Suppression, threshold: float
) -> Tensor:
    """The scores (N, P * K) after suppression among the few that are above the threshold."""
    flat = scores.flatten()
    rows = (flat > ABSENT).nonzero().squeeze(1)
    image, place = rows // scores.shape[1], rows % scores.shape[1]
    kept = suppressed_scores(
        boxes.flatten(0, 1)[rows][None],
        flat[rows][None],
        (image * num_classes + place % num_classes)[None],
        suppression=suppression,
        num_classes=0,  # the images are in the groups already
        min_score=threshold,
    )
    return torch.full_like(flat, ABSENT).scatter(0, rows, kept[0]).reshape(-1, scores.shape[1])
