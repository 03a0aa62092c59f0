"""Raw outputs of a dense head to detections, in one operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference
from ._checks import (
    check_decoding,
    compute_dtype,
    host_sizes,
    require_floating,
    require_same_device,
)
from ._library import define_op

OP = "dense_detections"
# The CUDA kernels take the levels and the factors by value.
MAX_LEVELS = 12
MAX_FACTORS = 4
MAX_IMAGE_SIZE = 2**31 - 1
# Detectron2's upper bound of dw and dh.
SCALE_CLAMP = math.log(1000.0 / 16)


class DenseDetections(NamedTuple):
    """Result of :func:`dense_detections`; nothing in it carries a gradient.

    Image i has ``counts[i]`` detections, best first. The remaining rows are padding: -1 in
    ``classes`` and ``rows``, 0 elsewhere.
    """

    boxes: Tensor  # (N, D, 4)
    scores: Tensor  # (N, D) the fused score
    classes: Tensor  # (N, D) int64 in [0, K)
    factors: Tensor  # (N, D, 1 + F) the fused probabilities, class first
    rows: Tensor  # (N, D) int64, the anchor's row among those of all levels, concatenated
    counts: Tensor  # (N,) int64


def _fake(cls_logits, deltas, anchors, factor_logits, num_classes, exponents, floors,
          score_thresh, topk, nms_thresh, max_detections, weights, scale_clamp,
          image_sizes):  # fmt: skip
    num_images = cls_logits[0].shape[0]
    return reference.empty_detections(cls_logits[0], num_images, max_detections, len(exponents))


_dense_detections = define_op(
    "dense_detections",
    reference=reference.dense_detections,
    fake=_fake,
)


def _by_tensors(cls_logits, deltas, anchors, factor_logits, num_classes, exponents, floors,
                score_thresh, topk, nms_thresh, max_detections, weights, scale_clamp,
                image_sizes):  # fmt: skip
    sizes = image_sizes.flatten().tolist()
    _check_sizes(sizes, cls_logits[0].shape[0])
    return torch.ops.resobj_d2.dense_detections(
        cls_logits, deltas, anchors, factor_logits, num_classes, exponents, floors, score_thresh,
        topk, nms_thresh, max_detections, weights, scale_clamp, sizes,
    )  # fmt: skip


# A compiled graph has a tensor of sizes as input; from a list it would depend on its length.
define_op(
    "_dense_detections_by_tensors",
    reference=_by_tensors,
    fake=_fake,
)


def dense_detections(
    cls_logits: Sequence[Tensor],  # L of (N, A_l * K, H_l, W_l)
    deltas: Sequence[Tensor] | None,  # L of (N, A_l * 4, H_l, W_l)
    anchors: Sequence[Tensor],  # L of (R_l, 4) or (N, R_l, 4)
    *,
    num_classes: int,
    factor_logits: Sequence[Sequence[Tensor]] = (),  # F times L of (N, A_l, H_l, W_l)
    exponents: Sequence[float] | None = None,  # 1 + F
    floors: Sequence[float] | None = None,  # 1 + F
    score_thresh: float,
    topk: int,
    nms_thresh: float,
    max_detections: int,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    scale_clamp: float = SCALE_CLAMP,
    image_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
) -> DenseDetections:
    """Scores, threshold, top-k per level, decoding, class-wise NMS and the best D boxes.

    The maps are read as a head's convolutions write them: nothing of their size is allocated or
    copied, and no map of sigmoids is formed. N images, L levels, A_l anchors per cell, K classes, F
    further factors (objectness, quality; at most 3). A level has R_l = H_l * W_l * A_l anchors,
    ordered by cell (row-major), then by anchor within the cell. D = ``max_detections``.

    The score of an anchor for a class is ``prod_i sigmoid(logit_i)^exponents[i]`` over the class
    and the F factors, or 0 if any probability is below its floor. This covers plain RetinaNet
    scores, P(class) * objectness (Residual Objectness) and cls^(1-a) * iou^a
    (RetinaNet-Conf, Eq. 11).

    Args:
        cls_logits: the K channels of an anchor are adjacent. Contiguous and channels-last maps are
            read in place, others are copied.
        deltas: R-CNN deltas (dx, dy, dw, dh), in the same layout; None if ``anchors`` already are
            the boxes.
        anchors: XYXY; either shared by the images or per image (such as a stage's refined boxes).
        num_classes: K.
        factor_logits: a list of L maps for each factor.
        exponents: at least 0, class first; default 1.
        floors: class first; default 0 (no floor).
        score_thresh: candidates must score above this; 0 or more if a floor is above 0.
        topk: maximum number of candidates per level that reach NMS.
        nms_thresh: a box is suppressed if its IoU with a better box of its class is above this.
        max_detections: D.
        weights: factors by which the deltas were multiplied.
        scale_clamp: upper bound of dw and dh, so that exp cannot overflow.
        image_sizes: N pairs (height, width) to which detections are clipped, after suppression as
            in Detectron2's RetinaNet; by default they are not clipped. As integers (N, 2) on the
            CPU they serve every batch under ``torch.compile``; a list is compiled again for
            another N.

    Returns:
        :class:`DenseDetections`, in float64 if an input is float64, else float32 (half precision
        is computed in float32). Ties in score are broken by level (finer first), then anchor, then
        class. An anchor with a NaN logit or a non-finite box yields no detection (a NaN class
        logit affects only that class).

    Raises:
        TypeError: a tensor is not floating point.
        ValueError: a shape, a device, the number of levels or an option is wrong.
    """
    cls_logits, deltas, anchors = list(cls_logits), list(deltas or ()), list(anchors)
    factors = [list(maps) for maps in factor_logits]
    exponents = [1.0] * (1 + len(factors)) if exponents is None else list(exponents)
    floors = [0.0] * (1 + len(factors)) if floors is None else list(floors)
    sizes = _sizes(image_sizes)
    tensors = _check_maps(cls_logits, deltas, anchors, factors, num_classes)
    _check_fusion(len(factors), exponents, floors)
    _check_selection(score_thresh, topk, nms_thresh, max_detections)
    if score_thresh < 0 and any(floor > 0 for floor in floors):
        raise ValueError(
            f"{OP}: score_thresh must be 0 or more with floors, got {score_thresh} and {floors}"
        )
    dtype = compute_dtype(*tensors.values())
    check_decoding(OP, dtype, weights, scale_clamp)
    if isinstance(sizes, list):
        _check_sizes(sizes, cls_logits[0].shape[0])
    operator = (
        _dense_detections
        if isinstance(sizes, list)
        else torch.ops.resobj_d2._dense_detections_by_tensors
    )

    def convert(maps: list[Tensor]) -> list[Tensor]:
        return [x.to(dtype) for x in maps]

    return DenseDetections(
        *operator(
            convert(cls_logits),
            convert(deltas),
            convert(anchors),
            [x for maps in factors for x in convert(maps)],
            num_classes,
            exponents,
            floors,
            score_thresh,
            topk,
            nms_thresh,
            max_detections,
            list(weights),
            scale_clamp,
            sizes,
        )
    )


def _sizes(image_sizes: Sequence[tuple[int, int]] | Tensor | None) -> list[int] | Tensor:
    """The sizes as one list; a tensor stays one while it is traced, and has no values."""
    if image_sizes is None:
        return []
    if not isinstance(image_sizes, Tensor):
        return [x if isinstance(x, torch.SymInt) else int(x) for s in image_sizes for x in s]
    return host_sizes(OP, "image_sizes", image_sizes, "(images, 2)")


def _check_maps(
    cls_logits: list[Tensor],
    deltas: list[Tensor],
    anchors: list[Tensor],
    factors: list[list[Tensor]],
    num_classes: int,
) -> dict[str, Tensor]:
    """The tensors, keyed by argument name."""
    lists = {"cls_logits": cls_logits, "anchors": anchors}
    if deltas:
        lists["deltas"] = deltas
    lists.update({f"factor_logits[{f}]": maps for f, maps in enumerate(factors)})
    if not 1 <= len(cls_logits) <= MAX_LEVELS:
        raise ValueError(
            f"{OP}: cls_logits must have 1 to {MAX_LEVELS} levels, got {len(cls_logits)}"
        )
    for name, maps in lists.items():
        if len(maps) != len(cls_logits):
            raise ValueError(
                f"{OP}: {name} must have {len(cls_logits)} levels like cls_logits, got {len(maps)}"
            )
    tensors = {f"{name}[{i}]": x for name, maps in lists.items() for i, x in enumerate(maps)}
    require_floating(OP, **tensors)
    require_same_device(OP, **tensors)
    if num_classes < 1:
        raise ValueError(f"{OP}: num_classes must be at least 1, got {num_classes}")
    for level in range(len(cls_logits)):
        _check_level({name: maps[level] for name, maps in lists.items()}, level, num_classes)
        if cls_logits[level].shape[0] != cls_logits[0].shape[0]:
            raise ValueError(
                f"{OP}: cls_logits[{level}] has {cls_logits[level].shape[0]} images, but "
                f"cls_logits[0] has {cls_logits[0].shape[0]}"
            )
    return tensors


def _check_level(tensors: dict[str, Tensor], level: int, num_classes: int) -> None:
    logits = tensors["cls_logits"]
    if logits.dim() != 4 or logits.shape[1] % num_classes:
        raise ValueError(
            f"{OP}: cls_logits[{level}] must have shape (images, anchors * {num_classes}, "
            f"height, width), got {tuple(logits.shape)}"
        )
    n, channels, h, w = logits.shape
    a = channels // num_classes
    shapes: dict[str, list[tuple[int, ...]]] = dict.fromkeys(tensors, [(n, a, h, w)])
    shapes["cls_logits"] = [tuple(logits.shape)]
    shapes["deltas"] = [(n, a * 4, h, w)]
    shapes["anchors"] = [(h * w * a, 4), (n, h * w * a, 4)]
    for name, tensor in tensors.items():
        if tuple(tensor.shape) not in shapes[name]:
            raise ValueError(
                f"{OP}: {name}[{level}] must have shape {' or '.join(map(str, shapes[name]))} "
                f"to match cls_logits, got {tuple(tensor.shape)}"
            )


def _check_fusion(num_factors: int, exponents: list[float], floors: list[float]) -> None:
    if num_factors >= MAX_FACTORS:
        raise ValueError(
            f"{OP}: factor_logits must have at most {MAX_FACTORS - 1} factors, got {num_factors}"
        )
    for name, values in (("exponents", exponents), ("floors", floors)):
        if len(values) != 1 + num_factors:
            raise ValueError(
                f"{OP}: {name} must have 1 number for the class and 1 for each of the "
                f"{num_factors} factors, got {values}"
            )
    if not all(0 <= e < math.inf for e in exponents):
        raise ValueError(f"{OP}: exponents must be finite and at least 0, got {exponents}")
    if any(f != f for f in floors):
        raise ValueError(f"{OP}: floors must be numbers, got {floors}")


def _check_selection(
    score_thresh: float, topk: int, nms_thresh: float, max_detections: int
) -> None:
    if score_thresh != score_thresh:  # not math.isnan, which cannot be compiled
        raise ValueError(f"{OP}: score_thresh must be a number, got {score_thresh}")
    if not nms_thresh >= 0:
        raise ValueError(f"{OP}: nms_thresh must be 0 or more, got {nms_thresh}")
    for name, value in (("topk", topk), ("max_detections", max_detections)):
        if value < 1:
            raise ValueError(f"{OP}: {name} must be at least 1, got {value}")
    if max_detections >= 2**31:
        raise ValueError(f"{OP}: max_detections must be below 2^31, got {max_detections}")


def _check_sizes(sizes: list[int], num_images: int) -> None:
    if sizes and len(sizes) != 2 * num_images:
        raise ValueError(
            f"{OP}: image_sizes must be (height, width) of each of {num_images} images, "
            f"got {len(sizes)} numbers"
        )
    if not all(0 <= size <= MAX_IMAGE_SIZE for size in sizes):
        raise ValueError(f"{OP}: image_sizes must be between 0 and {MAX_IMAGE_SIZE}, got {sizes}")
