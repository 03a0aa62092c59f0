"""The mask heads that Mask R-CNN compares its own with (He et al. 2017, Tables 2b and 2e)."""

from __future__ import annotations

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead, MaskRCNNConvUpsampleHead
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from resobj_d2.modeling.training_pictures import is_due

__all__ = ["MLPMaskHead", "SoftmaxMaskHead"]


@ROI_MASK_HEAD_REGISTRY.register()
class SoftmaxMaskHead(MaskRCNNConvUpsampleHead):
    """A softmax over the K classes and background at every pixel (Mask R-CNN, Table 2b, softmax).

    Masks of different classes compete, unlike those of ``MaskRCNNConvUpsampleHead``, whose layers
    and options it has. Background is the last of the K + 1 outputs.
    """

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        if cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK:
            raise ValueError(
                "SoftmaxMaskHead compares the classes: MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK must "
                "be False"
            )
        options = super().from_config(cfg, input_shape)
        return {**options, "num_classes": options["num_classes"] + 1}

    def forward(self, x: Tensor, instances: list[Instances]):
        """As Detectron2's mask heads: ``loss_mask`` in training, else ``instances`` with masks."""
        logits = self.layers(x).float()
        if self.training:
            return {"loss_mask": self._loss(logits, instances) * self.loss_weight}
        classes = torch.cat([found.pred_classes for found in instances])
        probabilities = torch.softmax(logits, dim=1)
        masks = probabilities[torch.arange(len(classes), device=classes.device), classes][:, None]
        for found, mask in zip(instances, masks.split([len(x) for x in instances]), strict=True):
            found.pred_masks = mask
        return instances

    def _loss(self, logits: Tensor, instances: list[Instances]) -> Tensor:
        """Mean cross entropy over the pixels of all RoIs; logits: (B, K + 1, M, M)."""
        instances = [x for x in instances if len(x)]
        if not instances:
            return logits.sum() * 0
        background, side = logits.shape[1] - 1, logits.shape[2]
        targets = []
        for x in instances:
            masks = x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, side).to(logits.device)
            inside = masks if masks.dtype == torch.bool else masks > 0.5
            targets.append(torch.where(inside, x.gt_classes[:, None, None], background))
        target = torch.cat(targets)
        if is_due(self.vis_period):
            self._put_pictures(logits, torch.cat([x.gt_classes for x in instances]), target)
        return F.cross_entropy(logits, target)

    @torch.no_grad()
    def _put_pictures(self, logits: Tensor, classes: Tensor, target: Tensor) -> None:
        """As Detectron2's mask loss: each RoI's mask of its class beside the true one."""
        rows = torch.arange(len(classes), device=classes.device)
        predicted = torch.softmax(logits, dim=1)[rows, classes]
        true = (target == classes[:, None, None]).float()
        for index, pair in enumerate(torch.cat((predicted, true), dim=2).cpu()):
            name = f"Left: mask prediction;   Right: mask GT ({index})"
            get_event_storage().put_image(name, pair.expand(3, -1, -1))


@ROI_MASK_HEAD_REGISTRY.register()
class MLPMaskHead(BaseMaskRCNNHead):
    """Masks from fully connected layers (Mask R-CNN, Table 2e, MLP), twice the RoI feature's side.

    Args:
        input_shape: of a RoI's feature, with height and width.
        num_classes: K, or 1 for masks that do not depend on the class.
        widths: of the hidden layers; 1024, 1024 in the paper.
        kwargs: arguments of Detectron2's ``BaseMaskRCNNHead``.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, num_classes: int, widths: list[int], **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.side = 2 * input_shape.height
        size = input_shape.channels * input_shape.height * input_shape.width
        layers: list[nn.Module] = []
        for width in widths:
            hidden = nn.Linear(size, width)
            weight_init.c2_xavier_fill(hidden)
            layers += [hidden, nn.ReLU()]
            size = width
        self.hidden = nn.Sequential(*layers)
        self.predictor = nn.Linear(size, num_classes * self.side**2)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        """``NUM_CONV`` hidden layers of width ``CONV_DIM``."""
        node = cfg.MODEL.ROI_MASK_HEAD
        if node.NUM_CONV < 1:
            raise ValueError(
                f"MLPMaskHead needs a hidden layer: MODEL.ROI_MASK_HEAD.NUM_CONV is {node.NUM_CONV}"
            )
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_classes": 1 if node.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "widths": [node.CONV_DIM] * node.NUM_CONV,
        }

    def layers(self, x: Tensor) -> Tensor:
        """(B, C, H, W) features to (B, K, 2H, 2H) logits."""
        logits = self.predictor(self.hidden(x.flatten(start_dim=1)))
        return logits.view(len(x), -1, self.side, self.side)
