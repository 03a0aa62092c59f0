"""A score branch that predicts the quality of the detector's own boxes."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from resobj_d2.losses import QualityLoss
from resobj_d2.matching import centerness
from resobj_d2.modeling.box_weights import overlaps
from resobj_d2.modeling.build import BRANCH_REGISTRY
from resobj_d2.modeling.contracts import ScoreBranch
from resobj_d2.modeling.heads.predictors import HeadParts
from resobj_d2.options import Option, Part
from resobj_d2.structures import Targets, TowerFeatures

__all__ = ["QualityBranch"]


@BRANCH_REGISTRY.register()
class QualityBranch(ScoreBranch):
    """Predicts how good an anchor is, by one 3x3 convolution on a tower.

    On the class tower this is the confidence of RetinaNet-Conf (Eq. 9 and 11), on the box tower the
    IoU of "IoU-aware Single-stage Object Detector" (Wu et al.). With several stages it belongs to
    the last one: its target is the IoU of the box that is finally detected. With ``target``
    "centerness" it is FCOS's centre-ness (Tian et al. 2019, Eq. 3), for a single stage.

    Args:
        parts: what its layer is built from.
        num_classes: K; unused, since one quality serves all classes.
        reads: tower to read, "cls" or "box".
        target: "iou" of the predicted box with its object, or "centerness" of the anchor's centre
            in it (:func:`resobj_d2.matching.centerness`).
        loss: loss between prediction and IoU.
        weight: factor of that loss.
        detach_target: treat the IoU as a constant, as Eq. 8 does. Otherwise the loss also moves the
            boxes, as in the public code of both papers.
        alpha: exponent of the quality in the score, ``cls^(1 - alpha) * quality^alpha``.
    """

    node_name = "QUALITY"
    name = "quality"
    owns_background = False
    last_stage_only = True
    needs_boxes = True

    def __init__(
        self,
        *,
        parts: HeadParts,
        num_classes: int = 1,
        reads: Annotated[
            str,
            Option("the tower it reads: cls (RetinaNet-Conf) or box (IoU-aware RetinaNet)"),
        ] = "cls",
        target: Annotated[
            str,
            Option(
                "what it predicts: iou of the box with its object, or centerness of the anchor's "
                "centre in it",
                source="FCOS, Eq. 3",
            ),
        ] = "iou",
        loss: Annotated[QualityLoss, Part()],
        weight: Annotated[float, Option("factor of its loss")] = 1.0,
        detach_target: Annotated[
            bool,
            Option(
                "treat the IoU as a constant; if False, the loss also moves the boxes",
                source="RetinaNet-Conf, Eq. 8",
                only={"target": ("iou",)},
            ),
        ] = True,
        alpha: Annotated[
            float,
            Option(
                "exponent of the quality in the score; every other factor gets 1 - ALPHA",
                source="RetinaNet-Conf, Eq. 11",
            ),
        ] = 0.4,
    ) -> None:
        super().__init__()
        if reads not in ("cls", "box"):
            raise ValueError(f"QUALITY.READS must be 'cls' or 'box', got {reads!r}")
        if target not in ("iou", "centerness"):
            raise ValueError(f"QUALITY.TARGET must be 'iou' or 'centerness', got {target!r}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"QUALITY.ALPHA must be in [0, 1], got {alpha}")
        self.reads = reads
        self.target = target
        self.needs_boxes = target == "iou"
        if target == "centerness":
            self.single_stage = (
                "TARGET centerness is nearly 1 for the refined boxes of STAGES, whose centres are "
                "their objects': set it to iou"
            )
        self.quality_loss = loss
        self.weight = weight
        self.detach_target = detach_target
        self.fusion_share = alpha
        self.predictor = parts.predictor(channels=1)

    def predict(self, features: TowerFeatures, *, every_step: bool = True) -> Tensor:
        """(N, R) logits."""
        return self.predictor(getattr(features, self.reads)).squeeze(-1)

    def loss(
        self,
        prediction: Tensor,
        *,
        targets: Targets,
        anchors: Tensor,
        boxes: Tensor | None,
        anchors_per_level: list[int],
        normalizer: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if boxes is None:
            quality = centerness(anchors, targets.matched_gt_boxes)
        else:
            quality = overlaps(boxes.detach() if self.detach_target else boxes, targets)
        foreground = targets.foreground
        total = self.quality_loss(prediction, quality, foreground, targets.background)
        mean = torch.where(foreground, quality.detach(), 0.0).sum() / foreground.sum()
        losses = {"loss_quality": total * self.weight / normalizer}
        return losses, {f"quality/{self.target}": mean}

    def score_logits(self, prediction: Tensor, step: int | None = None) -> Tensor:
        return prediction.float()
