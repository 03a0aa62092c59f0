"""Every operator in plain torch: the fallback without kernels, and the reference in tests.

Read these first; the kernels in ``csrc/`` must agree with them. They favour clarity over speed.
"""

from .balanced_l1_loss import balanced_l1_loss, balanced_l1_loss_backward
from .box_iou_aligned import box_iou_aligned, box_iou_aligned_backward
from .dense_detections import dense_detections, empty_detections
from .giou_loss import giou_loss, giou_loss_backward
from .match_anchors import match_anchors
from .nms import batched_nms, batched_nms_padded, matrix_nms, soft_nms, soft_nms_padded
from .pairwise_box_iou import pairwise_box_iou, pairwise_box_iou_out
from .reassign_anchors import reassign_anchors
from .residual_objectness_bce import (
    count_groups,
    foreground_minima,
    residual_objectness_bce,
    residual_objectness_bce_backward,
    selected_by,
)
from .sigmoid_focal_loss import sigmoid_focal_loss, sigmoid_focal_loss_backward

__all__ = [
    "balanced_l1_loss",
    "balanced_l1_loss_backward",
    "batched_nms",
    "batched_nms_padded",
    "box_iou_aligned",
    "box_iou_aligned_backward",
    "count_groups",
    "dense_detections",
    "empty_detections",
    "foreground_minima",
    "giou_loss",
    "giou_loss_backward",
    "match_anchors",
    "matrix_nms",
    "pairwise_box_iou",
    "pairwise_box_iou_out",
    "reassign_anchors",
    "residual_objectness_bce",
    "residual_objectness_bce_backward",
    "selected_by",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_backward",
    "soft_nms",
    "soft_nms_padded",
]
