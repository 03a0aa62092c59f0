"""Every operator in plain torch: the fallback without kernels, and the reference in tests.

Read these first; the kernels in ``csrc/`` must agree with them. They favour clarity over speed.
"""

from ._box_pairs import distance_overlap
from .balanced_l1_loss import (
    balanced_l1_loss,
    balanced_l1_loss_backward,
    elementwise_balanced_l1_loss,
)
from .box_iou_aligned import box_iou_aligned, box_iou_aligned_backward
from .dense_detections import dense_detections, empty_detections
from .giou_loss import elementwise_box_loss, giou_loss, giou_loss_backward
from .match_anchors import match_anchors
from .nms import batched_nms, batched_nms_padded, matrix_nms, soft_nms, soft_nms_padded
from .pairwise_box_iou import pairwise_box_iou, pairwise_box_iou_out
from .reassign_anchors import reassign_anchors
from .residual_objectness_bce import (
    count_groups,
    foreground_minima,
    residual_objectness_bce,
    residual_objectness_bce_backward,
    residual_objectness_terms,
    selected_by,
)
from .sigmoid_focal_loss import (
    counted,
    elementwise_focal_loss,
    elementwise_soft_focal_loss,
    sigmoid_focal_loss,
    sigmoid_focal_loss_backward,
)
from .weighted_box_fusion import weighted_box_fusion

__all__ = [
    "weighted_box_fusion",
    "distance_overlap",
    "residual_objectness_terms",
    "elementwise_soft_focal_loss",
    "elementwise_focal_loss",
    "elementwise_box_loss",
    "elementwise_balanced_l1_loss",
    "counted",
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
