"""The schemas of the operators, and what a kernel library must be called to fit them.

Schemas are written here and nowhere else. The build writes them into ``libresobj_cpu.so``, which
defines the operators for programs without Python; :mod:`._library` defines those that no library
has defined. Imports nothing but the standard library, since ``setup.py`` runs this file alone.
"""

from __future__ import annotations

import zlib

# Increase it whenever the meaning of an existing operator changes but its schema does not. The
# build writes it and a checksum of the schemas into the libraries, so that kernels of an older
# interface are never loaded.
INTERFACE = 4

_CANDIDATES = "Tensor boxes, Tensor scores, Tensor idxs"
_BATCHED = f"{_CANDIDATES}, float iou_threshold, int max_output=-1"
_SOFT = (
    f"{_CANDIDATES}, str method, float iou_threshold, float sigma, float min_score, "
    "int max_output=-1"
)
_MAPS = (
    "Tensor[] cls_logits, Tensor[] deltas, Tensor[] anchors, Tensor[] factor_logits, "
    "int num_classes, float[] exponents, float[] floors, float score_thresh, int topk, "
    "float nms_thresh, int max_detections, float[] weights, float scale_clamp"
)
_DETECTIONS = (
    "(Tensor boxes, Tensor scores, Tensor classes, Tensor factors, Tensor rows, Tensor counts)"
)
_MATCHES = "(Tensor gt_index, Tensor ious, Tensor label)"
_REASSIGNED = "(Tensor boxes, Tensor gt_index, Tensor ious, Tensor label, Tensor targets)"

_TEXTS = (
    # Losses
    "balanced_l1_loss(Tensor pred, Tensor target, float alpha=0.5, float gamma=1.5, "
    "float beta=1.0) -> Tensor",
    "_balanced_l1_loss_backward(Tensor grad_loss, Tensor pred, Tensor target, float alpha, "
    "float gamma, float beta) -> Tensor",
    "_balanced_l1_loss_with_gradient(Tensor grad_loss, Tensor pred, Tensor target, float alpha, "
    "float gamma, float beta) -> (Tensor loss, Tensor grad_pred)",
    "giou_loss(Tensor pred, Tensor target, Tensor? mask=None) -> Tensor",
    "_giou_loss_backward(Tensor grad_loss, Tensor pred, Tensor target, Tensor? mask) -> Tensor",
    "_giou_loss_with_gradient(Tensor grad_loss, Tensor pred, Tensor target, Tensor? mask) "
    "-> (Tensor loss, Tensor grad_pred)",
    "sigmoid_focal_loss(Tensor logits, Tensor labels, Tensor? mask=None, float alpha=0.25, "
    "float gamma=2.0) -> Tensor",
    "_sigmoid_focal_loss_backward(Tensor grad_loss, Tensor logits, Tensor labels, Tensor? mask, "
    "float alpha, float gamma) -> Tensor",
    "_sigmoid_focal_loss_with_gradient(Tensor grad_loss, Tensor logits, Tensor labels, "
    "Tensor? mask, float alpha, float gamma) -> (Tensor loss, Tensor grad_logits)",
    "residual_objectness_bce(Tensor logits, Tensor residuals, Tensor labels, "
    'str detach="all", str min_scope="image", str unselected="update", '
    "SymInt[] anchors_per_level=[]) "
    "-> (Tensor losses, Tensor counts, Tensor thresholds, Tensor score_sums, Tensor numbers)",
    "_residual_objectness_bce_backward(Tensor grad_losses, Tensor logits, Tensor residuals, "
    "Tensor labels, Tensor thresholds, str detach, str min_scope, str unselected, "
    "SymInt[] anchors_per_level) -> (Tensor grad_logits, Tensor grad_residuals)",
    "_residual_objectness_bce_with_gradient(Tensor grad_losses, Tensor logits, "
    "Tensor residuals, Tensor labels, str detach, str min_scope, str unselected, "
    "SymInt[] anchors_per_level) -> (Tensor losses, Tensor counts, Tensor thresholds, "
    "Tensor score_sums, Tensor numbers, Tensor grad_logits, Tensor grad_residuals)",
    # Overlaps
    'pairwise_box_iou(Tensor boxes1, Tensor boxes2, str kind="iou") -> Tensor',
    "_pairwise_box_iou_out(Tensor boxes1, Tensor boxes2, str kind, Tensor(a!) out) -> ()",
    'box_iou_aligned(Tensor pred, Tensor target, str kind="iou") -> Tensor',
    "_box_iou_aligned_backward(Tensor grad, Tensor pred, Tensor target, str kind) "
    "-> (Tensor grad_pred, Tensor grad_target)",
    # Matching
    "match_anchors(Tensor anchors, Tensor gt_boxes, SymInt[] gt_sizes, float[] thresholds, "
    "int[] labels, bool allow_low_quality=True, bool d2_compat=False, "
    "Tensor? ignore_boxes=None, SymInt[] ignore_sizes=[], float ignore_iof=0.5) "
    f"-> {_MATCHES}",
    "_match_anchors_by_tensors(Tensor anchors, Tensor gt_boxes, Tensor gt_sizes, "
    "float[] thresholds, int[] labels, bool allow_low_quality, bool d2_compat, "
    f"Tensor? ignore_boxes, Tensor ignore_sizes, float ignore_iof) -> {_MATCHES}",
    "reassign_anchors(Tensor anchors, Tensor deltas, Tensor gt_boxes, SymInt[] gt_sizes, "
    "float[] weights, float scale_clamp, float[] thresholds, int[] labels, "
    "bool allow_low_quality=False, bool d2_compat=False, Tensor? ignore_boxes=None, "
    f"SymInt[] ignore_sizes=[], float ignore_iof=0.5) -> {_REASSIGNED}",
    "_reassign_anchors_by_tensors(Tensor anchors, Tensor deltas, Tensor gt_boxes, "
    "Tensor gt_sizes, float[] weights, float scale_clamp, float[] thresholds, int[] labels, "
    "bool allow_low_quality, bool d2_compat, Tensor? ignore_boxes, Tensor ignore_sizes, "
    f"float ignore_iof) -> {_REASSIGNED}",
    # Detections
    f"batched_nms({_BATCHED}) -> Tensor",
    f"batched_nms_padded({_BATCHED}) -> (Tensor keep, Tensor count)",
    f"soft_nms({_SOFT}) -> (Tensor keep, Tensor new_scores)",
    f"soft_nms_padded({_SOFT}) -> (Tensor keep, Tensor new_scores, Tensor count)",
    f"matrix_nms({_CANDIDATES}, str kernel, float sigma) -> Tensor",
    f"weighted_box_fusion({_CANDIDATES}, Tensor models, float[] model_weights, "
    f"float iou_threshold, str confidence) -> ({_CANDIDATES})",
    f"dense_detections({_MAPS}, SymInt[] image_sizes) -> {_DETECTIONS}",
    f"_dense_detections_by_tensors({_MAPS}, Tensor image_sizes) -> {_DETECTIONS}",
)

SCHEMAS = {text.partition("(")[0]: text for text in _TEXTS}


def soname(backend: str) -> str:
    """The soname of the kernel library of ``"cpu"`` or ``"cuda"`` that fits these schemas."""
    checksum = zlib.crc32("\n".join(SCHEMAS.values()).encode())
    return f"libresobj_{backend}-interface{INTERFACE}-{checksum:08x}.so"
