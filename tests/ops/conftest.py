"""The implementations that every operator test runs on."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch

from resobj_d2 import ops
from resobj_d2.ops import reference

SCALE_CLAMP = 4.135166556742356  # log(1000 / 16)


def _reference_residual(logits, residuals, labels, *, detach="all", min_scope="image",
                        unselected="update", anchors_per_level=()):  # fmt: skip
    return ops.ResidualObjectnessOutput(
        *reference.residual_objectness_bce(
            logits, residuals, labels, detach, min_scope, unselected, list(anchors_per_level)
        )
    )


def _reference_match(anchors, gt_boxes, gt_sizes, *, thresholds, labels, **options):
    return ops.AnchorMatches(
        *reference.match_anchors(anchors, gt_boxes, gt_sizes, thresholds, labels, **options)
    )


def _reference_reassign(anchors, deltas, gt_boxes, gt_sizes, *, thresholds, labels,
                        weights=(1.0, 1.0, 1.0, 1.0), scale_clamp=SCALE_CLAMP,
                        **options):  # fmt: skip
    arguments = gt_sizes, list(weights), scale_clamp, thresholds, labels
    return ops.ReassignedAnchors(
        *reference.reassign_anchors(anchors, deltas, gt_boxes, *arguments, **options)
    )


def _reference_soft(boxes, scores, idxs, *, method="linear", iou_threshold=0.3, sigma=0.5,
                    min_score=0.001, max_output=-1, op=reference.soft_nms):  # fmt: skip
    return op(boxes, scores, idxs, method, iou_threshold, sigma, min_score, max_output)


def _reference_matrix(boxes, scores, idxs, *, kernel="gaussian", sigma=0.5):
    return reference.matrix_nms(boxes, scores, idxs, kernel, sigma)


def _reference_dense(cls_logits, deltas, anchors, *, num_classes, factor_logits=(), exponents=None,
                     floors=None, score_thresh, topk, nms_thresh, max_detections,
                     weights=(1.0, 1.0, 1.0, 1.0), scale_clamp=SCALE_CLAMP,
                     image_sizes=()):  # fmt: skip
    count = 1 + len(factor_logits)
    return ops.DenseDetections(
        *reference.dense_detections(
            list(cls_logits), list(deltas or ()), list(anchors),
            [x for maps in factor_logits for x in maps], num_classes, exponents or [1.0] * count,
            floors or [0.0] * count, score_thresh, topk, nms_thresh, max_detections, list(weights),
            scale_clamp, [x for size in image_sizes for x in size],
        )
    )  # fmt: skip


def _reference_loss(kind):
    def loss(pred, target, mask=None):
        return reference.elementwise_box_loss(pred, target, mask, kind).sum()

    return loss


def _reference_nms(op):
    def nms(boxes, scores, iou_threshold, max_output=-1):
        return op(boxes, scores, torch.zeros(len(boxes)), iou_threshold, max_output)

    return nms


def _reference_fusion(boxes, scores, idxs, models, *, model_weights, iou_threshold=0.55,
                      confidence="mean"):  # fmt: skip
    return reference.weighted_box_fusion(
        boxes, scores, idxs, models, model_weights, iou_threshold, confidence
    )


def _skip_unless_built(backend: str) -> None:
    status = ops.native_status()[backend]
    if status != "native":
        pytest.skip(f"{backend} kernels: {status}")


def _skip_unless_usable(backend: str) -> None:
    _skip_unless_built(backend)
    if backend == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


# Every operator's reference, with the signature of the operator's wrapper.
REFERENCES = {
    "balanced_l1_loss": reference.balanced_l1_loss,
    "batched_nms": reference.batched_nms,
    "batched_nms_padded": reference.batched_nms_padded,
    "box_iou_aligned": reference.box_iou_aligned,
    "ciou_loss": _reference_loss("ciou"),
    "dense_detections": _reference_dense,
    "diou_loss": _reference_loss("diou"),
    "giou_loss": reference.giou_loss,
    "match_anchors": _reference_match,
    "matrix_nms": _reference_matrix,
    "nms": _reference_nms(reference.batched_nms),
    "nms_padded": _reference_nms(reference.batched_nms_padded),
    "pairwise_box_iou": reference.pairwise_box_iou,
    "reassign_anchors": _reference_reassign,
    "residual_objectness_bce": _reference_residual,
    "sigmoid_focal_loss": reference.sigmoid_focal_loss,
    "soft_nms": _reference_soft,
    "soft_nms_padded": functools.partial(_reference_soft, op=reference.soft_nms_padded),
    "weighted_box_fusion": _reference_fusion,
}


@pytest.fixture(
    params=["reference", "native-cpu", pytest.param("native-cuda", marks=pytest.mark.cuda)]
)
def impl(request) -> SimpleNamespace:
    """One implementation: ``name``, ``device``, and each operator with the signature in ``ops``."""
    if request.param == "reference":
        return SimpleNamespace(name="reference", device="cpu", **REFERENCES)
    backend = request.param.removeprefix("native-")
    _skip_unless_usable(backend)
    operators = {op: getattr(ops, op) for op in REFERENCES}
    return SimpleNamespace(name=request.param, device=backend, **operators)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def native_backend(request) -> str:
    """A backend whose library was built, even if it has no device here."""
    _skip_unless_built(request.param)
    return request.param


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def native_device(request) -> str:
    """A device whose kernels can run here."""
    _skip_unless_usable(request.param)
    return request.param
