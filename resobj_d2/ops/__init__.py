"""Fused operators for dense detectors. This package depends only on torch.

Each operator is also available as ``torch.ops.resobj_d2.<name>``, with the same arguments but
without argument checks, without support for half precision, and losses as plain sums. ``nms``,
``diou_loss`` and ``ciou_loss`` are composed of operators and have no such form.
"""

from ._native import describe_operators, native_status
from ._one_pass import expected_gradient
from .balanced_l1_loss import balanced_l1_loss
from .box_iou_aligned import box_iou_aligned
from .dense_detections import DenseDetections, dense_detections
from .distance_iou_loss import ciou_loss, diou_loss
from .giou_loss import giou_loss
from .match_anchors import AnchorMatches, match_anchors
from .nms import (
    batched_nms,
    batched_nms_padded,
    matrix_nms,
    nms,
    nms_padded,
    soft_nms,
    soft_nms_padded,
)
from .pairwise_box_iou import pairwise_box_iou
from .reassign_anchors import ReassignedAnchors, reassign_anchors
from .residual_objectness_bce import ResidualObjectnessOutput, residual_objectness_bce
from .sigmoid_focal_loss import sigmoid_focal_loss
from .weighted_box_fusion import FusedBoxes, weighted_box_fusion

__all__ = [
    "AnchorMatches",
    "DenseDetections",
    "FusedBoxes",
    "ReassignedAnchors",
    "ResidualObjectnessOutput",
    "balanced_l1_loss",
    "batched_nms",
    "batched_nms_padded",
    "ciou_loss",
    "diou_loss",
    "nms",
    "nms_padded",
    "box_iou_aligned",
    "dense_detections",
    "describe_operators",
    "expected_gradient",
    "giou_loss",
    "match_anchors",
    "matrix_nms",
    "native_status",
    "pairwise_box_iou",
    "reassign_anchors",
    "residual_objectness_bce",
    "sigmoid_focal_loss",
    "soft_nms",
    "soft_nms_padded",
    "weighted_box_fusion",
]
