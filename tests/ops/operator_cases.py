"""Arguments for every operator, for what every operator must do; a new one must be added here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Arguments of one operator.

    Attributes:
        make: arguments by name, for inputs of about a given size; empty for size 0.
        gradients: arguments that get a gradient.
        many: a size large enough for several threads.
        composed: it has no entry of its own in ``torch.ops.resobj_d2``; where it has a gradient,
            it consists of torch's operators and can be differentiated any number of times.
    """

    make: Callable[[int], dict]
    gradients: tuple[str, ...] = ()
    many: int = 50000
    composed: bool = False


def rand(*shape):
    return torch.rand(shape)


def boxes(number):
    corner = rand(number, 2) * 50
    return torch.cat((corner, corner + 1 + rand(number, 2) * 20), dim=1)


def overlap_arguments(size):
    return {"boxes1": boxes(min(size, 100)), "boxes2": boxes(size), "kind": "giou"}


def pair_arguments(size):
    return {"pred": boxes(size), "target": boxes(size)}


def balanced_arguments(size):
    return {**pair_arguments(size), "beta": 20.0}  # some differences on each side of it


def aligned_arguments(size):
    return {**pair_arguments(size), "kind": "giou"}


def giou_arguments(size):
    return {**pair_arguments(size), "mask": rand(size) < 0.7}


def focal_arguments(size):
    labels = torch.randint(-1, 7, (size,))
    return {"logits": torch.randn(size, 6), "labels": labels, "mask": rand(size) < 0.7}


def residual_arguments(size):
    return {
        "logits": torch.randn(2, size),
        "residuals": torch.randn(2, 2, size),
        "labels": torch.randint(-1, 2, (2, size), dtype=torch.int8),
        "detach": "none",
        "unselected": "keep",
    }


def match_arguments(size):
    sizes = [3, 4] if size else [0, 0]
    return {
        "anchors": boxes(size),
        "gt_boxes": boxes(sum(sizes)),
        "gt_sizes": sizes,
        "thresholds": [0.4, 0.5],
        "labels": [0, -1, 1],
        "ignore_boxes": boxes(sizes[0]),
        "ignore_sizes": [sizes[0], 0],
    }


def reassign_arguments(size):
    deltas = 0.2 * torch.randn(2, size, 4)
    return {**match_arguments(size), "deltas": deltas, "weights": [10.0, 10.0, 5.0, 5.0]}


def candidate_arguments(size):
    return {"boxes": boxes(size), "scores": rand(size), "idxs": torch.randint(0, 3, (size,))}


def nms_arguments(size):
    return {**candidate_arguments(size), "iou_threshold": 0.5}


def one_class_arguments(size):
    return {"boxes": boxes(size), "scores": rand(size), "iou_threshold": 0.5}


def fusion_arguments(size):
    models = torch.randint(0, 3, (size,))
    return {
        **candidate_arguments(size),
        "models": models,
        "model_weights": [1.0, 2.0, 0.5],
        "iou_threshold": 0.3,
        "confidence": "mean",
    }


def dense_arguments(size):
    return {
        "cls_logits": [torch.randn(2, 2 * 3, size, 1)],
        "deltas": [torch.randn(2, 2 * 4, size, 1)],
        "anchors": [boxes(2 * size)],
        "num_classes": 3,
        "score_thresh": 0.3,
        "topk": 50,
        "nms_thresh": 0.5,
        "max_detections": 10,
    }


CASES = {
    "balanced_l1_loss": Case(balanced_arguments, ("pred",)),
    "batched_nms": Case(nms_arguments),
    "batched_nms_padded": Case(nms_arguments),
    "box_iou_aligned": Case(aligned_arguments, ("pred", "target")),
    "ciou_loss": Case(giou_arguments, ("pred",), composed=True),
    "dense_detections": Case(dense_arguments, many=20000),
    "diou_loss": Case(giou_arguments, ("pred",), composed=True),
    "giou_loss": Case(giou_arguments, ("pred",)),
    "match_anchors": Case(match_arguments, many=20000),
    "matrix_nms": Case(candidate_arguments, many=4500),
    "nms": Case(one_class_arguments, composed=True),
    "nms_padded": Case(one_class_arguments, composed=True),
    "pairwise_box_iou": Case(overlap_arguments, many=5000),
    "reassign_anchors": Case(reassign_arguments, many=20000),
    "residual_objectness_bce": Case(residual_arguments, ("logits", "residuals"), many=40000),
    "sigmoid_focal_loss": Case(focal_arguments, ("logits",)),
    "soft_nms": Case(candidate_arguments, many=4500),
    "soft_nms_padded": Case(candidate_arguments, many=4500),
    "weighted_box_fusion": Case(fusion_arguments, many=300),
}
# Each of its steps depends on the one before: a kernel would gain little. The private ones read
# tensors of sizes and call the operator.
WITHOUT_KERNELS = {
    "weighted_box_fusion",
    "_dense_detections_by_tensors",
    "_match_anchors_by_tensors",
    "_reassign_anchors_by_tensors",
}
# Loss and gradient in one pass: on a GPU they are two kernels.
ONE_PASS = ["balanced_l1_loss", "giou_loss", "residual_objectness_bce", "sigmoid_focal_loss"]
ON_THE_CPU_ALONE = {f"_{name}_with_gradient" for name in ONE_PASS}
# Sums of torch's operators, which depend on the number of threads.
COMPOSED_LOSSES = [name for name, case in CASES.items() if case.gradients and case.composed]
# Their gradient is a kernel's, which has none itself.
DIFFERENTIABLE_ONCE = [n for n, case in CASES.items() if case.gradients and not case.composed]
DIFFERENTIABLE = [name for name, case in CASES.items() if case.gradients]


def change(value, function):
    """``value`` with ``function`` applied to each tensor in it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list):
        return [change(item, function) for item in value]
    return value


def change_all(arguments, function):
    return {name: change(value, function) for name, value in arguments.items()}


def floating_to(dtype):
    return lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor


def arguments_of(name, size, device="cpu", seed=0):
    torch.manual_seed(seed)
    return change_all(CASES[name].make(size), lambda tensor: tensor.to(device))


def is_tensor(value):
    return isinstance(value, Tensor) or (isinstance(value, list) and isinstance(value[0], Tensor))
