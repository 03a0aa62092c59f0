"""Registries of the matching slots; yaml names the class: ``ASSIGNER.NAME: MaxIoUAssigner``."""

from __future__ import annotations

from resobj_d2.registry import Registry

__all__ = [
    "ASSIGNER_REGISTRY",
    "CODER_REGISTRY",
    "PRIORS_REGISTRY",
    "SAMPLER_REGISTRY",
    "build_two_stage_sampler",
]

PRIORS_REGISTRY = Registry("PRIORS")
PRIORS_REGISTRY.__doc__ = """
Prior boxes. An entry is an ``nn.Module`` built as ``Entry.from_config(node, strides)`` from
``MODEL.DENSE.PRIORS``; ``num_anchors`` lists A_l per level and
``priors(sizes) -> Priors`` takes the (H_l, W_l) of each level.
"""

CODER_REGISTRY = Registry("CODER")
CODER_REGISTRY.__doc__ = """
Box parametrisations, built as ``Entry.from_config(node)`` from ``MODEL.DENSE.CODER``:
``encode(anchors, boxes, strides) -> deltas`` and ``decode(anchors, deltas, strides) ->
boxes``, all (..., 4) and broadcast over the leading dimensions; ``strides`` (R, 1) are the
strides of the anchors' levels, which most parametrisations ignore. ``initial_delta`` is where the
bias of the box predictor on the priors starts, ``identity_delta`` where those of later stages
start: boxes then stay as they are. ``delta_options`` are the ``weights`` and ``scale_clamp`` with
which ``ops.dense_detections`` decodes the same deltas, or None where it cannot and ``decode`` is to
do it for every anchor. ``delta_space`` names the kind of deltas for the box losses that compare
them: "deltas" are numbers that any difference suits, "cell_deltas" YOLOv3's. ``anchor_offset`` is
the ``offset`` that its priors must have, or None.
"""

ASSIGNER_REGISTRY = Registry("ASSIGNER")
ASSIGNER_REGISTRY.__doc__ = """
Label assignment, built as ``Entry.from_config(node, num_classes)`` from ``MODEL.DENSE.ASSIGNER``:
``assigner(priors, anchors, ground_truth, prediction) -> Targets`` with ``anchors`` (R, 4) or
(N, R, 4). ``needs_predictions`` says whether it reads the (detached) StagePrediction; otherwise
``prediction`` is None. Its ``cls`` are then K logits whose sigmoids are the class probabilities,
whatever the class loss. ``weighs_boxes`` says whether its targets have ``box_weights``.
``labels_by_iou`` says whether ``matched_ious`` tell how much background
overlaps; otherwise they are 0 there.
"""

SAMPLER_REGISTRY = Registry("SAMPLER")
SAMPLER_REGISTRY.__doc__ = """
Selection of the labelled anchors that are trained, built as ``Entry.from_config(node)`` from
``MODEL.DENSE.SAMPLER``: ``sampler(targets, anchors=, difficulty=) -> (N, R) bool``, a subset of
``targets.valid``. Anchors outside it become ignored for every loss. ``needs_loss`` says whether it
ranks anchors by ``difficulty``, the (N, R) detached loss of each: that of the objectness where it
owns the background, otherwise the class loss; infinite where that is NaN. Without it
``difficulty`` is None. ``needs_ious`` says whether it reads the ``matched_ious`` of background.
"""


def build_two_stage_sampler(node, detectron2):
    """The sampler of a stage of Detectron2's R-CNN, which has keys of its own for its size.

    Args:
        node: the ``SAMPLER`` node of ``MODEL.RESOBJ_RPN`` or ``MODEL.RESOBJ_ROI``.
        detectron2: ``MODEL.RPN`` or ``MODEL.ROI_HEADS``.

    Returns:
        An entry of ``SAMPLER_REGISTRY``; None for Detectron2's own sampling.
    """
    if not node.NAME:
        return None
    node = node.clone()
    node.defrost()
    node.SIZE = detectron2.BATCH_SIZE_PER_IMAGE
    node.POSITIVE_FRACTION = detectron2.POSITIVE_FRACTION
    node.NEGATIVE_IOU = detectron2.IOU_THRESHOLDS[0]
    return SAMPLER_REGISTRY.get(node.NAME).from_config(node)
