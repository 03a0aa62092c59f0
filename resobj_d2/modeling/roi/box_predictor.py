"""Detectron2's box predictor with this package's box losses and a box quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from resobj_d2 import ops
from resobj_d2.losses import BOX_LOSS_REGISTRY, BoxLoss, QualityLoss
from resobj_d2.modeling.suppression import Suppression
from resobj_d2.options import Option, arguments_from, build

__all__ = ["ResObjBoxPredictor", "replace_predictor"]


class ResObjBoxPredictor(FastRCNNOutputLayers):
    """Detectron2's box predictor with a choice of box losses and an IoU output.

    ``forward`` returns the class logits (R, K + 1) and the deltas (R, 4 K or 4) of R RoIs and, with
    ``quality_loss``, the logits (R,) of the IoU of each RoI's box with its object. That output is
    shared by all classes of a RoI and trained with the box of the RoI's own class (the score of
    RetinaNet-Conf, Eq. 9 and 11, on RoIs). Without either option this is Detectron2's predictor.

    Args:
        input_shape: shape of a RoI's feature.
        box_loss: loss on the deltas or decoded boxes of the foreground's own classes. Its sum is
            divided by the number of sampled RoIs and weighted by ``loss_weight["loss_box_reg"]``.
            None for Detectron2's loss.
        quality_loss: between the IoU output and the IoU; None for no such output.
        quality_weight: factor of that loss, which is divided by the number of foreground RoIs.
        quality_detach_target: treat the IoU as a constant; otherwise the loss also moves the boxes.
        quality_alpha: a in the score ``class^(1 - a) * IoU^a``.
        suppression: removes duplicate detections; None for Detectron2's NMS.
        fast_rcnn: arguments of Detectron2's ``FastRCNNOutputLayers``.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        box_loss: BoxLoss | None = None,
        quality_loss: QualityLoss | None = None,
        quality_weight: Annotated[float, Option("factor of its loss", key="WEIGHT")] = 1.0,
        quality_detach_target: Annotated[
            bool,
            Option(
                "treat the IoU as a constant; if False, the loss also moves the boxes",
                key="DETACH_TARGET",
            ),
        ] = True,
        quality_alpha: Annotated[
            float,
            Option("exponent a of the quality in the score class^(1 - a) * IoU^a", key="ALPHA"),
        ] = 0.4,
        suppression: Suppression | None = None,
        **fast_rcnn,
    ) -> None:
        super().__init__(input_shape, **fast_rcnn)
        if not 0 <= quality_alpha <= 1:
            raise ValueError(f"QUALITY.ALPHA must be in [0, 1], got {quality_alpha}")
        self.box_loss = box_loss
        self.quality_loss = quality_loss
        self.quality_weight = quality_weight
        self.quality_detach_target = quality_detach_target
        self.quality_alpha = quality_alpha
        self.suppression = suppression
        if quality_loss is not None:
            self.quality_score = nn.Linear(self.cls_score.in_features, 1)
            nn.init.normal_(self.quality_score.weight, std=0.01)
            nn.init.zeros_(self.quality_score.bias)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        quality = cfg.MODEL.RESOBJ_ROI.QUALITY
        return {
            **super().from_config(cfg, input_shape),
            "box_loss": _box_loss_of(cfg),
            **_quality_arguments(cls, quality),
        }

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: (R, ...) features. The class docstring describes the result."""
        predictions = super().forward(x)
        if self.quality_loss is None:
            return predictions
        return *predictions, self.quality_score(x.flatten(start_dim=1)).squeeze(1)

    def losses(
        self, predictions: tuple[Tensor, ...], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """Detectron2's ``loss_cls`` and ``loss_box_reg``, plus ``loss_quality``."""
        losses = super().losses(predictions[:2], proposals)
        if self.quality_loss is not None:
            losses["loss_quality"] = self._quality_loss(predictions, proposals)
        return losses

    def box_reg_loss(
        self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor
    ) -> Tensor:
        """
        Args:
            proposal_boxes, gt_boxes: (R, 4).
            pred_deltas: (R, 4 K or 4).
            gt_classes: (R,) in [0, K], K for background.

        Returns:
            Scalar; 0 without RoIs.
        """
        if self.box_loss is None:
            return super().box_reg_loss(proposal_boxes, gt_boxes, pred_deltas, gt_classes)
        rows = self._foreground(gt_classes).nonzero().squeeze(1)
        pred = _of_own_class(pred_deltas[rows].float(), gt_classes[rows])
        if self.box_loss.compares == "boxes":
            pred = self.box2box_transform.apply_deltas(pred, proposal_boxes[rows])
            target = gt_boxes[rows]
        else:
            target = self.box2box_transform.get_deltas(proposal_boxes[rows], gt_boxes[rows])
        total = self.box_loss(pred, target, torch.ones_like(rows, dtype=torch.bool))
        return total if self.box_loss.self_normalized else total / max(len(gt_classes), 1)

    def _quality_loss(self, predictions: tuple[Tensor, ...], proposals: list[Instances]) -> Tensor:
        _, deltas, logits = predictions
        gt_classes = torch.cat([x.gt_classes for x in proposals])
        foreground = self._foreground(gt_classes)
        rows = foreground.nonzero().squeeze(1)
        proposal_boxes = torch.cat([x.proposal_boxes.tensor for x in proposals])
        # An image without objects has no gt_boxes; it has no foreground to need them.
        gt_boxes = torch.cat(
            [(x.gt_boxes if x.has("gt_boxes") else x.proposal_boxes).tensor for x in proposals]
        )
        deltas = deltas.detach() if self.quality_detach_target else deltas
        boxes = self.box2box_transform.apply_deltas(
            _of_own_class(deltas[rows], gt_classes[rows]), proposal_boxes[rows]
        )
        ious = ops.box_iou_aligned(boxes, gt_boxes[rows])
        if len(rows):
            get_event_storage().put_scalar("fast_rcnn/box_iou", ious.detach().mean().item())
        targets = torch.zeros_like(logits, dtype=torch.float32).index_put((rows,), ious.float())
        background = gt_classes == self.num_classes
        total = self.quality_loss(logits, targets, foreground, background)
        return total * self.quality_weight / max(len(rows), 1)

    def _foreground(self, gt_classes: Tensor) -> Tensor:
        return (gt_classes >= 0) & (gt_classes < self.num_classes)

    def predict_probs(
        self, predictions: tuple[Tensor, ...], proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """The scores (R_i, K + 1) of each image, with those of the K classes fused with the IoU."""
        probs = super().predict_probs(predictions[:2], proposals)
        if self.quality_loss is None:
            return probs
        quality = predictions[2].split([len(x) for x in proposals])
        return tuple(self.with_quality(*x) for x in zip(probs, quality, strict=True))

    def with_quality(self, probabilities: Tensor, quality_logits: Tensor) -> Tensor:
        """Scores (R, K + 1) from probabilities, background last, and the logits (R,) of the IoU."""
        quality, a = quality_logits.float().sigmoid()[:, None], self.quality_alpha
        classes, background = probabilities[:, :-1], probabilities[:, -1:]
        return torch.cat((classes ** (1 - a) * quality**a, background), dim=1)

    def inference(
        self, predictions: tuple[Tensor, ...], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """As in Detectron2: the detections of each image and the rows of their proposals."""
        if self.suppression is None:
            return super().inference(predictions, proposals)
        return self.suppress(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [x.image_size for x in proposals],
        )

    def suppress(
        self,
        boxes: Sequence[Tensor],
        scores: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> tuple[list[Instances], list[Tensor]]:
        """The detections of each image after ``suppression``, and the rows of their RoIs.

        Args:
            boxes: (R_i, 4 K or 4) of each image.
            scores: (R_i, K + 1) of each image, background last.
            image_sizes: (height, width) of each image.
        """
        results = [self._detect(*x) for x in zip(boxes, scores, image_sizes, strict=True)]
        return [instances for instances, _ in results], [rows for _, rows in results]

    def _detect(
        self, boxes: Tensor, scores: Tensor, image_size: tuple[int, int]
    ) -> tuple[Instances, Tensor]:
        """One image's of :meth:`suppress`.

        Args:
            boxes: (R, 4 K or 4).
            scores: (R, K + 1), background last.
        """
        scores = scores[:, :-1]
        finite = boxes.isfinite().all(dim=1, keepdim=True) & scores.isfinite().all(1, keepdim=True)
        rows, classes = ((scores > self.test_score_thresh) & finite).nonzero(as_tuple=True)
        clipped = Boxes(_of_own_class(boxes[rows], classes))
        clipped.clip(image_size)
        keep, kept_scores = self.suppression(
            clipped.tensor,
            scores[rows, classes],
            classes,
            min_score=self.test_score_thresh,
            # Detectron2 treats a negative number as no limit.
            max_output=self.test_topk_per_image if self.test_topk_per_image >= 0 else len(rows),
        )
        result = Instances(image_size)
        result.pred_boxes = clipped[keep]
        result.scores = kept_scores
        result.pred_classes = classes[keep]
        return result, rows[keep]

    # Detectron2's versions of these unpack exactly two predictions.

    def predict_boxes(self, predictions: tuple[Tensor, ...], proposals: list[Instances]):
        """The boxes (R_i, 4 K or 4) of each image."""
        return super().predict_boxes(predictions[:2], proposals)

    def predict_boxes_for_gt_classes(
        self, predictions: tuple[Tensor, ...], proposals: list[Instances]
    ):
        """The boxes (R_i, 4) of the RoIs' own classes, per image."""
        return super().predict_boxes_for_gt_classes(predictions[:2], proposals)


def replace_predictor(
    predictor: FastRCNNOutputLayers, cfg, input_shape: ShapeSpec, **options
) -> ResObjBoxPredictor:
    """A ``ResObjBoxPredictor`` with the layers of the one that Detectron2 has built.

    Layers of its own would draw random numbers once more, and the same seed would then give other
    weights to everything built later.

    Args:
        options: arguments of ``ResObjBoxPredictor`` besides those from ``cfg``.
    """
    with torch.random.fork_rng(devices=[]):
        replacement = ResObjBoxPredictor(cfg, input_shape, **options)
    replacement.cls_score = predictor.cls_score
    replacement.bbox_pred = predictor.bbox_pred
    return replacement


def _of_own_class(deltas: Tensor, classes: Tensor) -> Tensor:
    """(R, 4) from (R, 4 K), or from (R, 4) shared by all classes."""
    count, width = deltas.shape
    if width == 4:
        return deltas
    return deltas.view(count, width // 4, 4)[torch.arange(count, device=deltas.device), classes]


def _quality_arguments(owner: type, node) -> dict:
    if not node.ENABLED:
        return {}
    return {"quality_loss": build(QualityLoss, node), **arguments_from(owner, node)}


def _box_loss_of(cfg) -> BoxLoss | None:
    """The loss named by ``MODEL.RESOBJ_ROI.BOX_LOSS``."""
    node = cfg.MODEL.RESOBJ_ROI.BOX_LOSS
    if not node.NAME:
        return None
    kind = cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE
    if kind != "smooth_l1":
        raise ValueError(
            f"MODEL.RESOBJ_ROI.BOX_LOSS.NAME {node.NAME} replaces the box loss of Detectron2, so "
            f"leave MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE at 'smooth_l1', got {kind!r}"
        )
    loss = build(BOX_LOSS_REGISTRY.get(node.NAME), node)
    if loss.compares not in ("boxes", "deltas"):
        raise ValueError(
            f"MODEL.RESOBJ_ROI.BOX_LOSS.NAME {node.NAME} needs another box parametrisation than "
            "Detectron2's deltas"
        )
    return loss
