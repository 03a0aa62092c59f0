"""A region proposal network with Residual Objectness and a choice of samplers."""

from __future__ import annotations

from dataclasses import replace

import torch
from detectron2.config import configurable
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from resobj_d2.losses import (
    NORMALIZER_REGISTRY,
    BoxLoss,
    CIoULoss,
    DIoULoss,
    GIoULoss,
    Normalizer,
    SmoothL1Loss,
    objectness_difficulty,
)
from resobj_d2.matching import DeltaCoder, MaxIoUAssigner, Sampler, build_two_stage_sampler
from resobj_d2.modeling.branches.objectness import ObjectnessPrediction
from resobj_d2.ops import expected_gradient
from resobj_d2.options import build
from resobj_d2.structures import IGNORE, GroundTruth, LevelMaps, Priors, Targets

from .head import ResObjRPNHead

__all__ = ["ResObjRPN"]


@PROPOSAL_GENERATOR_REGISTRY.register()
class ResObjRPN(RPN):
    """Detectron2's RPN with optional sampling and refined objectness from this package.

    Chen et al., "Residual Objectness for Imbalance Reduction", section 4.3: all labelled anchors
    are trained instead of a random sample, and proposals are ranked by o_T. The paper does not
    state the normaliser. Here the objectness and residual sums are divided by ``normalizer``, by
    default the number of foreground anchors in the batch; the box loss keeps Detectron2's divisor
    ``BATCH_SIZE_PER_IMAGE * N`` and thus its scale in the baseline.

    Without a sampler this is Detectron2's RPN.

    Args:
        assigner: labels the anchors; foreground has class 0.
        sampler: None for Detectron2's random sampling, which cannot be combined with an objectness
            branch.
        normalizer: divisor of the objectness branch's sums; None without such a branch.
        rpn: arguments of Detectron2's ``RPN``; the head is a :class:`ResObjRPNHead`.

    After a training forward ``statistics`` holds detached scalars of that batch, on the device.
    """

    @configurable
    def __init__(
        self,
        *,
        assigner: MaxIoUAssigner,
        sampler: Sampler | None = None,
        normalizer: Normalizer | None = None,
        **rpn,
    ) -> None:
        super().__init__(**rpn)
        if not isinstance(self.rpn_head, ResObjRPNHead):
            raise ValueError(
                "MODEL.PROPOSAL_GENERATOR.NAME ResObjRPN needs MODEL.RPN.HEAD_NAME ResObjRPNHead, "
                f"got a {type(self.rpn_head).__name__}"
            )
        if self.rpn_head.objectness is not None and sampler is None:
            raise ValueError(
                "MODEL.RESOBJ_RPN.OBJECTNESS needs a MODEL.RESOBJ_RPN.SAMPLER.NAME: KeepAll as in "
                "the paper, or another one"
            )
        if sampler is not None:
            self.anchor_matcher = None  # the assigner replaces it; nothing left to accelerate
        self.assigner = assigner
        self.sampler = sampler
        self.normalizer = normalizer
        self.box_loss: BoxLoss | None = None
        self.coder: DeltaCoder | None = None
        if self.rpn_head.objectness is not None:
            self.box_loss = _box_loss(self.box_reg_loss_type, self.smooth_l1_beta)
            self.coder = _coder(self.box2box_transform)
        self.statistics: dict[str, Tensor] = {}

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        node = cfg.MODEL.RESOBJ_RPN
        normalizer = None
        if node.OBJECTNESS.ENABLED:
            normalizer = build(NORMALIZER_REGISTRY.get(node.NORMALIZER.NAME), node.NORMALIZER)
        return {
            **super().from_config(cfg, input_shape),
            "assigner": MaxIoUAssigner(
                num_classes=1,
                iou_thresholds=cfg.MODEL.RPN.IOU_THRESHOLDS,
                iou_labels=cfg.MODEL.RPN.IOU_LABELS,
            ),
            "sampler": build_two_stage_sampler(node.SAMPLER, cfg.MODEL.RPN),
            "normalizer": normalizer,
        }

    @property
    def num_steps(self) -> int:
        """T."""
        return self.rpn_head.num_steps

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Like Detectron2's ``RPN``: the proposals of each image, and losses when training."""
        self._refuse_half()
        if self.sampler is None:
            return super().forward(images, features, gt_instances)
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        prediction, deltas = self.rpn_head.predict(maps, every_step=self.training)
        deltas = _per_level(deltas)
        losses: dict[str, Tensor] = {}
        if self.training:
            if gt_instances is None:
                raise ValueError("training the RPN needs 'instances' in every input dict")
            losses = self.losses_of(anchors, maps, prediction, deltas, gt_instances)
        return self._proposals(anchors, prediction, deltas, images.image_sizes), losses

    def _refuse_half(self) -> None:
        """Raises for weights with which Detectron2's anchors and boxes would be rounded too."""
        dtype = self.rpn_head.anchor_deltas.weight.dtype
        if dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"Detectron2's two-stage detectors need float32 weights, got {dtype}: keep them "
                "and use torch.autocast (SOLVER.AMP.ENABLED), or a dense detector"
            )

    def losses_of(
        self,
        anchors: list[Boxes],
        maps: list[Tensor],
        prediction: ObjectnessPrediction,
        deltas: list[Tensor],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """The losses of predictions, weighted and normalised.

        Args:
            anchors, maps, gt_instances: see :meth:`assign`.
            prediction: of the objectness.
            deltas: (N, R_l, 4) of each level.
        """
        targets = self._targets(anchors, maps, prediction, gt_instances)
        return self._losses(anchors, prediction, deltas, targets)

    @torch.no_grad()
    def proposals_per_step(
        self, images: ImageList, features: dict[str, Tensor]
    ) -> list[list[Instances]]:
        """Proposals ranked by the objectness after t = 0..T residuals, from one forward.

        Returns:
            T + 1 lists, each with the proposals of every image as :meth:`forward` returns them.
        """
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        prediction, deltas = self.rpn_head.predict(maps)
        deltas = _per_level(deltas)
        return [
            self._proposals(anchors, prediction, deltas, images.image_sizes, step=t)
            for t in range(self.num_steps + 1)
        ]

    def _proposals(
        self,
        anchors: list[Boxes],
        prediction: ObjectnessPrediction,
        deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
        step: int | None = None,
    ) -> list[Instances]:
        scores = self.rpn_head.score_logits(prediction, step).detach()
        scores = list(scores.split([len(x) for x in anchors], dim=1))
        return self.predict_proposals(anchors, scores, deltas, image_sizes)

    @torch.no_grad()
    def assign(
        self, anchors: list[Boxes], maps: list[Tensor], gt_instances: list[Instances]
    ) -> Targets:
        """What each anchor is, before anchors are sampled.

        Args:
            anchors: of each level.
            maps: features of each level.
            gt_instances: objects of each image.
        """
        priors = Priors(
            boxes=Boxes.cat(anchors).tensor,
            anchors_per_level=[len(x) for x in anchors],
            map_sizes=[tuple(x.shape[-2:]) for x in maps],
            strides=list(self.anchor_generator.strides),
        )
        ground_truth = GroundTruth.from_lists(
            [x.gt_boxes.tensor for x in gt_instances],
            [torch.zeros(len(x), device=x.gt_boxes.device) for x in gt_instances],
        )
        targets = self.assigner(priors, priors.boxes, ground_truth)
        if self.anchor_boundary_thresh < 0:
            return targets
        all_anchors, limit = Boxes(priors.boxes), self.anchor_boundary_thresh
        inside = [all_anchors.inside_box(x.image_size, limit) for x in gt_instances]
        return replace(targets, labels=torch.where(torch.stack(inside), targets.labels, IGNORE))

    @torch.no_grad()
    def _targets(
        self,
        anchors: list[Boxes],
        maps: list[Tensor],
        prediction: ObjectnessPrediction,
        gt_instances: list[Instances],
    ) -> Targets:
        """Assigns and samples; every loss ignores anchors that are not sampled."""
        targets = self.assign(anchors, maps, gt_instances)
        difficulty = None
        if self.sampler.needs_loss:
            logits = self.rpn_head.score_logits(prediction)
            difficulty = objectness_difficulty(logits, targets.foreground)
        mask = self.sampler(targets, anchors=Boxes.cat(anchors).tensor, difficulty=difficulty)
        return replace(targets, labels=torch.where(mask, targets.labels, IGNORE))

    def _losses(
        self,
        anchors: list[Boxes],
        prediction: ObjectnessPrediction,
        deltas: list[Tensor],
        targets: Targets,
    ) -> dict[str, Tensor]:
        anchors_per_level = [len(x) for x in anchors]
        branch = self.rpn_head.objectness
        if branch is None:  # Detectron2's losses and logging
            return self.losses(
                anchors,
                list(prediction.logits.float().split(anchors_per_level, dim=1)),
                list(targets.binary_labels),
                deltas,
                list(targets.matched_gt_boxes),
            )
        all_anchors = Boxes.cat(anchors).tensor
        losses = {"loss_rpn_loc": self._box_loss_of(all_anchors, torch.cat(deltas, dim=1), targets)}
        num_foreground, num_trained = targets.foreground.sum(), targets.valid.sum()
        num_images = len(targets.labels)
        normalizer = self.normalizer(num_foreground, num_trained, num_images)
        weight = self.loss_weight.get("loss_rpn_cls", 1.0)
        with expected_gradient(weight):
            branch_losses, self.statistics = branch.loss(
                prediction,
                targets=targets,
                anchors=all_anchors,
                boxes=None,
                anchors_per_level=anchors_per_level,
                normalizer=normalizer,
            )
        for name, loss in branch_losses.items():
            losses[name.replace("loss_", "loss_rpn_", 1)] = loss * weight
        # Under the names that Detectron2's RPN logs.
        self.statistics["rpn/num_pos_anchors"] = num_foreground / num_images
        self.statistics["rpn/num_neg_anchors"] = (num_trained - num_foreground) / num_images
        return losses

    def _box_loss_of(self, anchors: Tensor, deltas: Tensor, targets: Targets) -> Tensor:
        """The box loss that Detectron2's ``losses`` gives, with its divisor and weight.

        It is a sum over a mask, so that the data decide no shape and nothing waits for the device.

        Args:
            anchors: (R, 4).
            deltas: (N, R, 4).
        """
        pred, target = deltas, targets.matched_gt_boxes
        if self.box_loss.compares == "boxes":
            pred = self.coder.decode(anchors, pred)
        else:
            target = self.coder.encode(anchors, target)
        weight = self.loss_weight.get("loss_rpn_loc", 1.0)
        factor = weight / (self.batch_size_per_image * len(targets.labels))
        with expected_gradient(factor):
            total = self.box_loss(pred, target, targets.foreground)
        return total * factor


def _box_loss(kind: str, beta: float) -> BoxLoss:
    """The loss that ``MODEL.RPN.BBOX_REG_LOSS_TYPE`` names."""
    if kind == "smooth_l1":
        return SmoothL1Loss(beta=max(beta, 0.0))  # Detectron2's is L1 below 0 too
    overlaps: dict[str, type[BoxLoss]] = {"giou": GIoULoss, "diou": DIoULoss, "ciou": CIoULoss}
    if kind not in overlaps:
        raise ValueError(
            "MODEL.RPN.BBOX_REG_LOSS_TYPE must be one of smooth_l1, giou, diou and ciou, "
            f"got {kind!r}"
        )
    return overlaps[kind]()


def _coder(transform: Box2BoxTransform) -> DeltaCoder:
    """The same deltas as Detectron2's, whose ``get_deltas`` waits for the device."""
    if type(transform) is not Box2BoxTransform:
        raise ValueError(
            "an RPN with MODEL.RESOBJ_RPN.OBJECTNESS needs Detectron2's Box2BoxTransform, got a "
            f"{type(transform).__name__}"
        )
    if min(transform.weights) <= 0:
        raise ValueError(
            f"MODEL.RPN.BBOX_REG_WEIGHTS must be positive, got {tuple(transform.weights)}"
        )
    return DeltaCoder(weights=transform.weights, scale_clamp=transform.scale_clamp)


def _per_level(deltas: LevelMaps) -> list[Tensor]:
    """L tensors (N, H_l * W_l * A, 4), as in Detectron2's RPN."""
    return [LevelMaps([x], deltas.channels).flatten() for x in deltas.levels]
