"""The operators inside Detectron2's own RetinaNet and RPN: ``resobj_d2.accelerate(model)``.

Detectron2 offers no way to plug in another matching: its ``Matcher`` is called with the finished
IoU matrix. The closest method above it is the one that labels the anchors. An accelerated module
therefore becomes (this instance only) an object of a subclass that overrides that method, and its
matcher becomes a :class:`FusedMatcher`, which can start from the boxes. No class or function of
Detectron2 is changed, nor are parameters, buffers and ``state_dict``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import torch
from detectron2.layers import cat
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from resobj_d2 import ops
from resobj_d2.compat import update_loss_normalizer
from resobj_d2.ops._native import NATIVE

from .ops.match_anchors import MAX_THRESHOLDS

__all__ = ["FusedMatcher", "accelerate", "accelerated_parts", "restore"]

logger = logging.getLogger(__name__)


class FusedMatcher(Matcher):
    """Detectron2's ``Matcher`` that can also start from boxes, without the IoU matrix.

    Called with a matrix it is ``Matcher``. For a whole batch, :meth:`match_boxes` replaces
    ``pairwise_iou`` and that call, with bit-identical results.

    Args:
        thresholds, labels, allow_low_quality_matches: as for ``Matcher``.

    Raises:
        ValueError: more than 16 thresholds, or anchors without overlap would be foreground.
    """

    def __init__(
        self,
        thresholds: list[float],
        labels: list[int],
        allow_low_quality_matches: bool = False,
    ) -> None:
        super().__init__(thresholds, labels, allow_low_quality_matches)
        if labels[0] == 1:
            raise ValueError("FusedMatcher: the first of labels must be 0 or -1, got 1")
        if len(thresholds) > MAX_THRESHOLDS:
            raise ValueError(
                f"FusedMatcher: thresholds must be at most {MAX_THRESHOLDS}, got {len(thresholds)}"
            )

    def match_boxes(
        self, gt_boxes: Sequence[Boxes], boxes: Boxes | Sequence[Boxes]
    ) -> list[tuple[Tensor, Tensor]]:
        """Matches and labels of every image, equal to ``self(pairwise_iou(gt_boxes[i], boxes))``.

        Args:
            gt_boxes: the ground truth of N images.
            boxes: R anchors shared by the images, or R boxes per image.

        Returns:
            For each image ``matches`` (R,) int64, the row of the best ground truth (0 if none), and
            ``match_labels`` (R,) int8 of -1, 0, 1.

        Raises:
            ValueError: the images have different numbers of boxes, or devices differ.
        """
        if not gt_boxes:
            return []
        shared = isinstance(boxes, Boxes)
        match = ops.match_anchors(
            boxes.tensor if shared else torch.stack([x.tensor for x in boxes]),
            torch.cat([x.tensor for x in gt_boxes]),
            [len(x) for x in gt_boxes],
            thresholds=self.thresholds[1:-1],  # Matcher adds the infinities
            labels=self.labels,
            allow_low_quality=self.allow_low_quality_matches,
            d2_compat=True,
        )
        return list(zip(match.gt_index.clamp(min=0), match.label, strict=True))


class _Accelerated:
    """Base of the overriding classes; ``original_class`` is the module's original class."""

    original_class: type
    overrides: tuple[type, ...]

    def __reduce_ex__(self, protocol):
        # The class is created at run time, so copies and pickles must know how to recreate it.
        _, _, *state = super().__reduce_ex__(max(int(protocol), 2))
        return (_new_module, (self.original_class, self.overrides), *state)

    def can_match(self, gt_instances: list[Instances], anchors: list[Boxes]) -> bool:
        """Whether the matcher and the type of boxes are still those that were accelerated."""
        boxes = [*anchors, *(x.gt_boxes for x in gt_instances)]
        return isinstance(self.anchor_matcher, FusedMatcher) and all(
            type(x) is Boxes for x in boxes
        )


class RetinaNetLabels(_Accelerated):
    """RetinaNet's labels from one call per batch, bit-identical to Detectron2's."""

    module_class = RetinaNet
    method = "label_anchors"
    what = "labels"

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]):
        """See ``RetinaNet.label_anchors``."""
        if not self.can_match(gt_instances, anchors):
            return super().label_anchors(anchors, gt_instances)
        anchors = Boxes.cat(anchors)
        matches = self.anchor_matcher.match_boxes([x.gt_boxes for x in gt_instances], anchors)
        labels, boxes = [], []
        for instances, (index, label) in zip(gt_instances, matches, strict=True):
            if len(instances) == 0:
                labels.append(torch.full_like(index, self.num_classes))
                boxes.append(torch.zeros_like(anchors.tensor))
                continue
            classes = torch.where(label == 0, self.num_classes, instances.gt_classes[index])
            labels.append(classes.masked_fill_(label == -1, -1))
            boxes.append(instances.gt_boxes.tensor[index])
        return labels, boxes


class RPNLabels(_Accelerated):
    """The RPN's labels from one call per batch; its sampling draws the same random numbers."""

    module_class = RPN
    method = "label_and_sample_anchors"
    what = "labels"

    @torch.jit.unused
    @torch.no_grad()
    def label_and_sample_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]):
        """See ``RPN.label_and_sample_anchors``."""
        if not self.can_match(gt_instances, anchors):
            return super().label_and_sample_anchors(anchors, gt_instances)
        anchors = Boxes.cat(anchors)
        matches = self.anchor_matcher.match_boxes([x.gt_boxes for x in gt_instances], anchors)
        labels, boxes = [], []
        for instances, (index, label) in zip(gt_instances, matches, strict=True):
            if self.anchor_boundary_thresh >= 0:
                inside = anchors.inside_box(instances.image_size, self.anchor_boundary_thresh)
                label = label.masked_fill(~inside, -1)
            labels.append(self._subsample_labels(label))
            empty = len(instances) == 0
            boxes.append(
                torch.zeros_like(anchors.tensor) if empty else instances.gt_boxes.tensor[index]
            )
        return labels, boxes


class RetinaNetLosses(_Accelerated):
    """Focal loss without one-hot targets, box loss on foreground only; equal up to rounding."""

    module_class = RetinaNet
    method = "losses"
    what = "losses"

    def losses(self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        """See ``RetinaNet.losses``."""
        labels = torch.stack(gt_labels)  # (N, R); K is background, -1 ignored
        foreground = (labels >= 0) & (labels != self.num_classes)
        num_foreground = foreground.sum().item()
        get_event_storage().put_scalar("num_pos_anchors", num_foreground / len(labels))
        normalizer = update_loss_normalizer(self, max(num_foreground, 1))
        # Level by level: concatenating all logits would cost another copy.
        levels = labels.split([x.shape[1] for x in pred_logits], dim=1)
        with ops.expected_gradient(1 / normalizer):
            loss_cls = sum(
                ops.sigmoid_focal_loss(
                    logits, level, alpha=self.focal_loss_alpha, gamma=self.focal_loss_gamma
                )
                for logits, level in zip(pred_logits, levels, strict=True)
            )
        # Detectron2's own loss, called as if all foreground anchors were one image.
        image, anchor = foreground.nonzero(as_tuple=True)
        loss_box_reg = _dense_box_regression_loss(
            [Boxes.cat(anchors)[anchor]],
            self.box2box_transform,
            [cat(pred_anchor_deltas, dim=1)[None, image, anchor]],
            [torch.stack(gt_boxes)[image, anchor]],
            torch.ones((1, len(anchor)), dtype=torch.bool, device=labels.device),
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        return {"loss_cls": loss_cls * (1 / normalizer), "loss_box_reg": loss_box_reg / normalizer}


class RPNLosses(_Accelerated):
    """The RPN's own losses on the anchors sampled in any image; equal up to rounding."""

    module_class = RPN
    method = "losses"
    what = "losses"

    @torch.jit.unused
    def losses(self, anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        """See ``RPN.losses``."""
        # All other anchors are ignored in every image and contribute to no sum.
        (keep,) = (torch.stack(gt_labels) >= 0).any(dim=0).nonzero(as_tuple=True)
        return super().losses(
            [type(anchors[0]).cat(anchors)[keep]],
            [cat(pred_objectness_logits, dim=1)[:, keep]],
            [labels[keep] for labels in gt_labels],
            [cat(pred_anchor_deltas, dim=1)[:, keep]],
            [boxes[keep] for boxes in gt_boxes],
        )


LABELS = (RetinaNetLabels, RPNLabels)
LOSSES = (RetinaNetLosses, RPNLosses)


def accelerate(model: nn.Module, *, losses: bool = False) -> nn.Module:
    """Speed up the training of Detectron2's RetinaNet and RPN, wherever they are in ``model``.

    Labels come from :func:`resobj_d2.ops.match_anchors` instead of ``pairwise_iou`` and
    ``Matcher``: bit-identical in much less time and memory, so training proceeds exactly as
    without it. The log says what was accelerated, what was not, and why;
    :func:`accelerated_parts` gives that to a program. Inference, RoI heads and FCOS are unchanged.

    Args:
        model: changed in place (this instance only); it may already be wrapped in
            ``DistributedDataParallel``. Its parameters and ``state_dict`` are unchanged, and it can
            be copied and pickled. Apply it before ``torch.compile``, and :func:`restore` the model
            before ``torch.jit.script``.
        losses: also compute the losses of these modules in less time and memory. They are then
            equal up to rounding (about 1e-6), no longer bit-identical.

    Returns:
        ``model``. If nothing in it can be accelerated it is returned unchanged, with a warning. A
        warning also says if the operators have no kernels for the model's current device.
    """
    restore(model)
    for name, module in model.named_modules():
        label = f"{name or 'the model'} ({type(module).__name__})"
        overrides = []
        for override in (*LABELS, *(LOSSES if losses else ())):
            if not isinstance(module, override.module_class):
                continue
            reason = _why_not(module, override)
            if reason:
                logger.warning("%s of %s not accelerated: %s", override.what, label, reason)
            else:
                overrides.append(override)
                logger.info("%s of %s accelerated", override.what, label)
        if overrides:
            _override(module, tuple(overrides))
    if not accelerated_parts(model):
        logger.warning(
            "nothing in %s was accelerated: only Detectron2's RetinaNet and RPN can be, and "
            "subclasses that keep their methods",
            type(model).__name__,
        )
    else:
        _warn_without_kernels(next(model.parameters()).device.type)
    return model


def _warn_without_kernels(backend: str) -> None:
    status = ops.native_status().get(backend, f"there are none for {backend}")
    if status != NATIVE:
        logger.warning(
            "the model is on %s, whose kernels are not in use (%s): its labels are right, but not "
            "computed faster than Detectron2's",
            backend,
            status,
        )


def restore(model: nn.Module) -> nn.Module:
    """Undo :func:`accelerate`; no effect on any other model. Returns ``model``."""
    for module in model.modules():
        if isinstance(module, _Accelerated):
            module.__class__ = module.original_class
            if isinstance(module.anchor_matcher, FusedMatcher):
                module.anchor_matcher = _same_rule(Matcher, module.anchor_matcher)
    return model


def accelerated_parts(model: nn.Module) -> dict[str, list[str]]:
    """What :func:`accelerate` changed: for each submodule by name ("" is the model itself),
    ``"labels"``, ``"losses"`` or both."""
    return {
        name: [override.what for override in module.overrides]
        for name, module in model.named_modules()
        if isinstance(module, _Accelerated)
    }


def _why_not(module: nn.Module, override: type) -> str:
    """Why a method of this module cannot be replaced; "" if it can."""
    method = override.method
    theirs = getattr(override.module_class, method)
    if getattr(type(module), method) is not theirs or method in vars(module):
        return f"{type(module).__name__} overrides {method}"
    if override in LABELS:
        if type(module.anchor_matcher) not in (Matcher, FusedMatcher):
            return f"its matcher is a {type(module.anchor_matcher).__name__}, not a Matcher"
        try:
            _same_rule(FusedMatcher, module.anchor_matcher)
        except ValueError as error:
            return str(error)
    elif override is RPNLosses and getattr(module.rpn_head, "objectness", None) is not None:
        return "beside an objectness branch its losses are its own"
    elif override is RetinaNetLosses and not module.focal_loss_alpha <= 1:
        return f"focal_loss_alpha must be at most 1, but is {module.focal_loss_alpha}"
    return ""


def _override(module: nn.Module, overrides: tuple[type, ...]) -> None:
    module.__class__ = _subclass(type(module), overrides)
    if any(override in LABELS for override in overrides):
        module.anchor_matcher = _same_rule(FusedMatcher, module.anchor_matcher)


def _same_rule(matcher_class: type[Matcher], matcher: Matcher) -> Matcher:
    return matcher_class(
        matcher.thresholds[1:-1], matcher.labels, matcher.allow_low_quality_matches
    )


@functools.cache
def _subclass(original: type, overrides: tuple[type, ...]) -> type:
    attributes = {"original_class": original, "overrides": overrides}
    return type(original.__name__, (*overrides, original), attributes)


def _new_module(original: type, overrides: tuple[type, ...]) -> nn.Module:
    subclass = _subclass(original, overrides)
    return subclass.__new__(subclass)
