"""Detectron2's RoI heads with this package's samplers and box predictor."""

from __future__ import annotations

import math

import torch
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.roi_heads import CascadeROIHeads, ROIHeads, StandardROIHeads
from detectron2.structures import ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn import functional as F

from resobj_d2.compat import sigmoid_scores_are_set
from resobj_d2.matching import Sampler, background_range, build_two_stage_sampler
from resobj_d2.modeling.suppression import Suppression
from resobj_d2.options import build
from resobj_d2.structures import IGNORE, Targets

from .box_predictor import replace_predictor

__all__ = ["ResObjCascadeROIHeads", "ResObjROIHeads", "proposal_labels"]


class _SampledROIHeads:
    """Common part of both kinds of heads: a mixin for Detectron2's classes.

    Args:
        sampler: selects the proposals of each image; None for Detectron2's random sampling.
        background_ious: lowest and highest IoU at which a proposal is background.
        heads: arguments of Detectron2's class.
    """

    @configurable
    def __init__(
        self,
        *,
        sampler: Sampler | None = None,
        background_ious: tuple[float, float] | None = None,
        **heads,
    ) -> None:
        super().__init__(**heads)
        self.sampler = sampler
        self.background_ious = background_ious

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        node = cfg.MODEL.ROI_HEADS
        return {
            **super().from_config(cfg, input_shape),
            "sampler": _sampler_of(cfg),
            "background_ious": background_range(node.IOU_THRESHOLDS, node.IOU_LABELS),
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Same as Detectron2's."""
        if self.training and self.sampler is not None:
            if targets is None:
                raise ValueError("training the RoI heads needs 'instances' in every input dict")
            proposals = self.sample_proposals(features, proposals, targets)
        return super().forward(images, features, proposals, targets)

    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """Detectron2's sampling; a no-op with a sampler, which runs in :meth:`forward`."""
        if self.sampler is not None:
            return proposals
        return super().label_and_sample_proposals(proposals, targets)

    @torch.no_grad()
    def sample_proposals(
        self, features: dict[str, Tensor], proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """The selected proposals with their ground truth, as Detectron2's sampling returns them."""
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        labelled = [self._label(x, gt) for x, gt in zip(proposals, targets, strict=True)]
        difficulty = [None] * len(proposals)
        if self.sampler.needs_loss:
            logits = self._class_logits(features, proposals).float()
            labels = torch.cat([x.labels[0] for x in labelled])
            loss = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
            # If no sampler selected a NaN, it would hide that training has diverged.
            loss = torch.where(loss.isnan(), math.inf, loss)
            difficulty = [x[None] for x in loss.split([len(x) for x in proposals])]
        chosen = []
        for x, gt, labels, hard in zip(proposals, targets, labelled, difficulty, strict=True):
            mask = self.sampler(labels, anchors=x.proposal_boxes.tensor, difficulty=hard)
            chosen.append(_with_ground_truth(x, gt, labels, mask[0].nonzero().squeeze(1)))
        self._log_counts(chosen)
        return chosen

    def _label(self, proposals: Instances, gt: Instances) -> Targets:
        """One image's targets from Detectron2's matcher."""
        boxes = proposals.proposal_boxes
        ious = pairwise_iou(gt.gt_boxes, boxes)
        labels, index = proposal_labels(self, ious, gt)
        if len(gt):
            best, matched_gt_boxes = ious.max(dim=0).values, gt.gt_boxes.tensor[index]
        else:
            best, matched_gt_boxes = ious.new_zeros(len(boxes)), boxes.tensor
        return Targets(
            labels=labels[None],
            matched_gt_boxes=matched_gt_boxes[None],
            matched_ious=best[None],
            gt_index=index[None],
            num_classes=self.num_classes,
            background_ious=self.background_ious,
        )

    def _log_counts(self, proposals: list[Instances]) -> None:
        background = sum((x.gt_classes == self.num_classes).sum().item() for x in proposals)
        foreground = sum(len(x) for x in proposals) - background
        storage = get_event_storage()
        storage.put_scalar("roi_head/num_fg_samples", foreground / len(proposals))
        storage.put_scalar("roi_head/num_bg_samples", background / len(proposals))


def proposal_labels(heads: ROIHeads, ious: Tensor, gt: Instances) -> tuple[Tensor, Tensor]:
    """What Detectron2's matcher makes of one image's proposals, before any are sampled.

    Args:
        heads: that train on them.
        ious: (M, R) of its objects and the proposals.
        gt: the objects.

    Returns:
        Classes (R,), K for background, or ``IGNORE``; and objects (R,), -1 where there are none.
    """
    index, matched = heads.proposal_matcher(ious)
    if len(gt):
        labels = gt.gt_classes[index]
    else:
        labels, index = torch.zeros_like(index), torch.full_like(index, -1)
    labels = torch.where(matched == 0, heads.num_classes, labels)
    return torch.where(matched == -1, IGNORE, labels), index


@ROI_HEADS_REGISTRY.register()
class ResObjROIHeads(_SampledROIHeads, StandardROIHeads):
    """Detectron2's ``StandardROIHeads`` with ``MODEL.RESOBJ_ROI``: box loss, sampling,
    quality, NMS.

    The mask and keypoint heads are Detectron2's and read the same proposals.
    """

    @classmethod
    def _init_box_head(cls, cfg, input_shape) -> dict:
        parts = super()._init_box_head(cfg, input_shape)
        parts["box_predictor"] = replace_predictor(
            parts["box_predictor"],
            cfg,
            parts["box_head"].output_shape,
            suppression=_suppression_of(cfg),
        )
        return parts

    @property
    def suppression(self) -> Suppression | None:
        """What removes duplicate detections; None for Detectron2's NMS."""
        return self.box_predictor.suppression

    def _class_logits(self, features: dict[str, Tensor], proposals: list[Instances]) -> Tensor:
        """(R, K + 1) of all proposals of the batch."""
        maps = [features[name] for name in self.box_in_features]
        pooled = self.box_pooler(maps, [x.proposal_boxes for x in proposals])
        return self.box_predictor(self.box_head(pooled))[0]


@ROI_HEADS_REGISTRY.register()
class ResObjCascadeROIHeads(_SampledROIHeads, CascadeROIHeads):
    """Detectron2's ``CascadeROIHeads`` with ``MODEL.RESOBJ_ROI``: box loss, sampling,
    quality, NMS.

    The sampler acts on the first stage, by its loss; later stages train on the resulting boxes.
    Each stage predicts the quality of its own boxes; the mean of the fused scores is used.
    """

    @classmethod
    def _init_box_head(cls, cfg, input_shape) -> dict:
        parts = super()._init_box_head(cfg, input_shape)
        parts["box_predictors"] = [
            replace_predictor(
                predictor,
                cfg,
                head.output_shape,
                box2box_transform=predictor.box2box_transform,
                suppression=_suppression_of(cfg),
            )
            for head, predictor in zip(parts["box_heads"], parts["box_predictors"], strict=True)
        ]
        return parts

    @property
    def suppression(self) -> Suppression | None:
        """What removes duplicate detections; None for Detectron2's NMS."""
        return self.box_predictor[-1].suppression

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> dict[str, Tensor] | list[Instances]:
        """Same as Detectron2's, which has its NMS in the middle of it."""
        if self.training or self.suppression is None:
            return super()._forward_box(features, proposals, targets)
        maps = [features[name] for name in self.box_in_features]
        sizes = [x.image_size for x in proposals]
        scores, boxes = [], []
        for stage, predictor in enumerate(self.box_predictor):
            if stage > 0:
                proposals = self._create_proposals_from_boxes(boxes, sizes)
            predictions = self._run_stage(maps, proposals, stage)
            boxes = predictor.predict_boxes(predictions, proposals)
            scores.append(predictor.predict_probs(predictions, proposals))
        means = [torch.stack(x).mean(dim=0) for x in zip(*scores, strict=True)]
        return predictor.suppress(boxes, means, sizes)[0]

    def _class_logits(self, features: dict[str, Tensor], proposals: list[Instances]) -> Tensor:
        """(R, K + 1) of all proposals of the batch, from the first stage."""
        maps = [features[name] for name in self.box_in_features]
        return self._run_stage(maps, proposals, 0)[0]


def _with_ground_truth(
    proposals: Instances, gt: Instances, targets: Targets, rows: Tensor
) -> Instances:
    """The proposals ``rows``, each with ``gt_classes`` and all ``gt_*`` fields of its object."""
    chosen = proposals[rows]
    chosen.gt_classes = targets.labels[0, rows]
    if len(gt):
        objects = targets.gt_index[0, rows]
        for name, value in gt.get_fields().items():
            if name.startswith("gt_") and not chosen.has(name):
                chosen.set(name, value[objects])
    return chosen


def _suppression_of(cfg) -> Suppression | None:
    """What ``MODEL.RESOBJ_ROI.NMS`` names, or None for Detectron2's NMS."""
    if cfg.MODEL.RESOBJ_ROI.NMS == "greedy":
        return None
    node = cfg.MODEL.RESOBJ_ROI.clone()
    node.defrost()
    node.NMS_THRESH = cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST
    return build(Suppression, node)


def _sampler_of(cfg) -> Sampler | None:
    """The sampler of ``MODEL.RESOBJ_ROI.SAMPLER``, or None."""
    node = cfg.MODEL.RESOBJ_ROI.SAMPLER
    sampler = build_two_stage_sampler(node, cfg.MODEL.ROI_HEADS)
    if sampler is not None and sampler.needs_loss and sigmoid_scores_are_set(cfg):
        raise ValueError(
            f"MODEL.RESOBJ_ROI.SAMPLER.NAME {node.NAME} ranks proposals by softmax cross entropy, "
            "so MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE must be False"
        )
    return sampler
