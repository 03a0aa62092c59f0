"""Matches each anchor to a ground-truth box without forming the matrix of all IoUs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference
from ._checks import as_dtype, host_sizes
from ._library import define_op

# The CUDA kernels take the thresholds by value.
MAX_THRESHOLDS = 16


class AnchorMatches(NamedTuple):
    """Result of :func:`match_anchors`; nothing in it carries a gradient."""

    gt_index: Tensor  # (N, R) int64, row of the best box within its image; -1 if it has none
    ious: Tensor  # (N, R) IoU with that box; 0 if the image has none
    label: Tensor  # (N, R) int8: 1 foreground, 0 background, -1 ignored


def _fake(anchors, gt_boxes, gt_sizes, thresholds, labels, allow_low_quality=True,
          d2_compat=False, ignore_boxes=None, ignore_sizes=(), ignore_iof=0.5):  # fmt: skip
    shape = (count(gt_sizes), anchors.shape[-2])
    return (
        anchors.new_empty(shape, dtype=torch.int64),
        anchors.new_empty(shape),
        anchors.new_empty(shape, dtype=torch.int8),
    )


_match_anchors = define_op(
    "match_anchors",
    reference=reference.match_anchors,
    fake=_fake,
)


def _by_tensors(anchors, gt_boxes, gt_sizes, thresholds, labels, allow_low_quality, d2_compat,
                ignore_boxes, ignore_sizes, ignore_iof):  # fmt: skip
    sizes = checked_sizes("match_anchors", gt_boxes, gt_sizes, ignore_boxes, ignore_sizes)
    return torch.ops.resobj_d2.match_anchors(
        anchors, gt_boxes, sizes[0], thresholds, labels, allow_low_quality, d2_compat,
        ignore_boxes, sizes[1], ignore_iof,
    )  # fmt: skip


# A compiled graph has tensors of sizes as inputs; from lists it would depend on every number.
_match_anchors_by_tensors = define_op(
    "_match_anchors_by_tensors",
    reference=_by_tensors,
    fake=_fake,
)


def match_anchors(
    anchors: Tensor,  # (R, 4) or (N, R, 4)
    gt_boxes: Tensor,  # (sum M_i, 4)
    gt_sizes: Sequence[int] | Tensor,  # M_i
    *,
    thresholds: Sequence[float],
    labels: Sequence[int],
    allow_low_quality: bool = True,
    d2_compat: bool = False,
    ignore_boxes: Tensor | None = None,  # (sum of ignore_sizes, 4)
    ignore_sizes: Sequence[int] | Tensor = (),
    ignore_iof: float = 0.5,
) -> AnchorMatches:
    """Best ground-truth box of every anchor of a batch, and the label its IoU gives it.

    In float32, for finite boxes, the result is bit-identical to Detectron2's ``pairwise_iou`` and
    ``Matcher``, ties included. Besides the result the kernels need O(R + M) memory, never the
    M x R matrix. N images, R anchors, M_i boxes in image i; boxes are XYXY in any one unit.

    Args:
        anchors: (R, 4) shared by the images, or (N, R, 4), such as refined anchors.
        gt_boxes: (sum M_i, 4), the boxes of all images, concatenated.
        gt_sizes: the N numbers M_i; any may be 0. As a list or as integers (N,) on the CPU, which
            serve every batch under ``torch.compile``: a list is compiled again for another N and
            wherever a size becomes 0 or 1.
        thresholds: positive, ascending bounds of half-open IoU intervals (at most 16), for example
            ``[0.4, 0.5]`` for the intervals below .4, [.4, .5), and .5 or more.
        labels: label of each interval, one more than thresholds: 1 (foreground), 0 (background) or
            -1 (ignored). The first, for anchors without overlap, must not be 1.
        allow_low_quality: also make an anchor foreground if no other anchor has a higher IoU with
            some box (ties included). It stays matched to its own best box, as in Detectron2.
        d2_compat: for a box that overlaps no anchor the best IoU is 0, and Detectron2 then makes
            every anchor of the image foreground. True reproduces that; by default such a box gets
            no anchor.
        ignore_boxes: crowd regions, concatenated like ``gt_boxes``. An anchor that is not
            foreground becomes ignored if at least ``ignore_iof`` of its area lies in one of them.
        ignore_sizes: the number of ignore regions of each image; required with ``ignore_boxes``.
        ignore_iof: fraction of the anchor's area, above 0.

    Returns:
        :class:`AnchorMatches`. If several boxes have the same IoU the first is taken, so an anchor
        without overlap has row 0. In an image without boxes anchors get row -1, IoU 0 and
        ``labels[0]``. IoUs are float64 if an input is float64, else float32 (half precision is
        computed in float32). A box without area, with swapped corners or with a NaN coordinate
        overlaps nothing.

    Raises:
        TypeError: a tensor is not floating point.
        ValueError: a shape, a device, a size or an option is wrong.
    """
    op = "match_anchors"
    if isinstance(gt_sizes, Tensor):
        gt_sizes = host_sizes(op, "gt_sizes", gt_sizes)
    if isinstance(ignore_sizes, Tensor):
        ignore_sizes = host_sizes(op, "ignore_sizes", ignore_sizes)
    dtype = check_match(
        op,
        anchors,
        gt_boxes,
        gt_sizes,
        thresholds,
        labels,
        ignore_boxes,
        ignore_sizes,
        ignore_iof,
    )
    operator = _match_anchors
    if isinstance(gt_sizes, Tensor) or isinstance(ignore_sizes, Tensor):
        operator = _match_anchors_by_tensors
        gt_sizes, ignore_sizes = as_tensors(gt_sizes, ignore_sizes)
    return AnchorMatches(
        *operator(
            as_dtype(anchors, dtype),
            as_dtype(gt_boxes, dtype),
            gt_sizes,
            thresholds,
            labels,
            allow_low_quality,
            d2_compat,
            None if ignore_boxes is None else as_dtype(ignore_boxes, dtype),
            ignore_sizes,
            ignore_iof,
        )
    )


def as_tensors(*sizes: Sequence[int] | Tensor) -> list[Tensor]:
    """int64 on the host."""
    return [torch.as_tensor(x, dtype=torch.int64, device="cpu") for x in sizes]


def count(sizes: Sequence[int] | Tensor) -> int:
    """Their number; len() would make that of a traced tensor a constant of the graph."""
    return sizes.shape[0] if isinstance(sizes, Tensor) else len(sizes)


def checked_sizes(
    op: str,
    gt_boxes: Tensor,
    gt_sizes: Tensor,
    ignore_boxes: Tensor | None,
    ignore_sizes: Tensor,
) -> tuple[list[int], list[int]]:
    """The numbers in two tensors of sizes; ValueError unless they fit the boxes."""
    lists = gt_sizes.tolist(), ignore_sizes.tolist()
    _check_sums(op, "gt", gt_boxes, lists[0])
    if ignore_boxes is not None:
        _check_sums(op, "ignore", ignore_boxes, lists[1])
    return lists


def check_match(
    op: str,
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_sizes: Sequence[int] | Tensor,
    thresholds: Sequence[float],
    labels: Sequence[int],
    ignore_boxes: Tensor | None,
    ignore_sizes: Sequence[int] | Tensor,
    ignore_iof: float,
) -> torch.dtype:
    """Raises, naming ``op``, for arguments that cannot be matched; returns the compute dtype."""
    _check_boxes(op, "anchors", anchors, anchors, (2, 3))
    _check_ragged(op, "gt", gt_boxes, gt_sizes, anchors)
    if anchors.dim() == 3 and anchors.shape[0] != count(gt_sizes):
        raise ValueError(
            f"{op}: anchors has {anchors.shape[0]} images, but gt_sizes has {count(gt_sizes)}"
        )
    dtype = torch.promote_types(torch.promote_types(anchors.dtype, gt_boxes.dtype), torch.float32)
    if ignore_boxes is not None:
        _check_ragged(op, "ignore", ignore_boxes, ignore_sizes, anchors)
        dtype = torch.promote_types(dtype, ignore_boxes.dtype)
    if count(ignore_sizes) != (0 if ignore_boxes is None else count(gt_sizes)):
        raise ValueError(
            f"{op}: ignore_sizes must have one size per image with ignore_boxes and none "
            f"without, got {count(ignore_sizes)} for {count(gt_sizes)} images"
        )
    _check_rule(op, dtype, list(thresholds), list(labels), ignore_iof)
    return dtype


def _check_boxes(op: str, name: str, boxes: Tensor, anchors: Tensor, dims: tuple[int, ...]) -> None:
    if not isinstance(boxes, Tensor) or not boxes.is_floating_point():
        given = boxes.dtype if isinstance(boxes, Tensor) else type(boxes).__name__
        raise TypeError(f"{op}: {name} must be a floating-point tensor, got {given}")
    if boxes.dim() not in dims or boxes.shape[-1] != 4:
        shapes = " or ".join({2: "(number, 4)", 3: "(images, number, 4)"}[d] for d in dims)
        raise ValueError(f"{op}: {name} must have shape {shapes}, got {tuple(boxes.shape)}")
    if boxes.device != anchors.device:
        raise ValueError(f"{op}: {name} is on {boxes.device}, but anchors is on {anchors.device}")


def _check_ragged(
    op: str, prefix: str, boxes: Tensor, sizes: Sequence[int] | Tensor, anchors: Tensor
) -> None:
    _check_boxes(op, f"{prefix}_boxes", boxes, anchors, (2,))
    if not isinstance(sizes, Tensor):
        _check_sums(op, prefix, boxes, sizes)


def _check_sums(op: str, prefix: str, boxes: Tensor, sizes: Sequence[int]) -> None:
    if any(size < 0 for size in sizes) or sum(sizes) != boxes.shape[0]:
        raise ValueError(
            f"{op}: {prefix}_sizes must be non-negative and sum to the {boxes.shape[0]} rows "
            f"of {prefix}_boxes, got {list(sizes)}"
        )


def _check_rule(
    op: str, dtype: torch.dtype, thresholds: list[float], labels: list[int], ignore_iof: float
) -> None:
    # One that is rounded to 0 would make anchors without overlap foreground.
    least = torch.finfo(dtype).tiny
    # Not sorted(), which cannot be compiled.
    ascending = all(low <= high for low, high in pairwise(thresholds))
    ascending = ascending and all(t >= least for t in thresholds)
    if not 0 < len(thresholds) <= MAX_THRESHOLDS or not ascending:
        raise ValueError(
            f"{op}: thresholds must be 1 to {MAX_THRESHOLDS} positive numbers in "
            f"ascending order, got {thresholds}"
        )
    if len(labels) != len(thresholds) + 1 or not set(labels) <= {-1, 0, 1} or labels[0] == 1:
        raise ValueError(
            f"{op}: labels must be {len(thresholds) + 1} values of -1, 0, 1, the first "
            f"not 1, got {labels}"
        )
    if not ignore_iof >= least:
        raise ValueError(f"{op}: ignore_iof must be above 0, got {ignore_iof}")
