"""Every operator written in plain torch: the fallback without kernels and the oracle in tests.

Read these first; the kernels in ``csrc/`` must agree with them. Clarity wins over speed here.
"""

from .anchor_matching import match_anchors
from .box_iou import pairwise_box_iou
from .focal_loss import sigmoid_focal_loss, sigmoid_focal_loss_backward
from .residual_objectness import (
    count_groups,
    foreground_minima,
    residual_objectness_bce,
    residual_objectness_bce_backward,
    selected_by,
)

__all__ = [
    "count_groups",
    "foreground_minima",
    "match_anchors",
    "pairwise_box_iou",
    "residual_objectness_bce",
    "residual_objectness_bce_backward",
    "selected_by",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_backward",
]
