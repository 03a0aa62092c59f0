"""Moves anchors by predicted deltas and matches them again at their new place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference
from ._checks import as_dtype, check_decoding, host_sizes
from ._library import define_op
from .match_anchors import as_tensors, check_match, checked_sizes, count

__all__ = ["ReassignedAnchors", "reassign_anchors"]


class ReassignedAnchors(NamedTuple):
    """Result of :func:`reassign_anchors`; nothing in it carries a gradient."""

    boxes: Tensor  # (N, R, 4) the refined anchors
    gt_index: Tensor  # (N, R) int64, row of the best box within its image; -1 if it has none
    ious: Tensor  # (N, R) IoU with that box; 0 if the image has none
    label: Tensor  # (N, R) int8: 1 foreground, 0 background, -1 ignored
    targets: Tensor  # (N, R, 4) deltas from the refined anchor to its box; 0 if not foreground


def _fake(anchors, deltas, gt_boxes, gt_sizes, weights, scale_clamp, thresholds, labels,
          allow_low_quality=False, d2_compat=False, ignore_boxes=None, ignore_sizes=(),
          ignore_iof=0.5):  # fmt: skip
    shape = (count(gt_sizes), deltas.shape[1])
    return (
        deltas.new_empty((*shape, 4)),
        deltas.new_empty(shape, dtype=torch.int64),
        deltas.new_empty(shape),
        deltas.new_empty(shape, dtype=torch.int8),
        deltas.new_empty((*shape, 4)),
    )


_reassign_anchors = define_op(
    "reassign_anchors",
    reference=reference.reassign_anchors,
    fake=_fake,
)


def _by_tensors(anchors, deltas, gt_boxes, gt_sizes, weights, scale_clamp, thresholds, labels,
                allow_low_quality, d2_compat, ignore_boxes, ignore_sizes, ignore_iof):  # fmt: skip
    sizes = checked_sizes("reassign_anchors", gt_boxes, gt_sizes, ignore_boxes, ignore_sizes)
    return torch.ops.resobj_d2.reassign_anchors(
        anchors, deltas, gt_boxes, sizes[0], weights, scale_clamp, thresholds, labels,
        allow_low_quality, d2_compat, ignore_boxes, sizes[1], ignore_iof,
    )  # fmt: skip


_reassign_anchors_by_tensors = define_op(
    "_reassign_anchors_by_tensors",
    reference=_by_tensors,
    fake=_fake,
)


def reassign_anchors(
    anchors: Tensor,  # (R, 4) or (N, R, 4)
    deltas: Tensor,  # (N, R, 4)
    gt_boxes: Tensor,  # (sum M_i, 4)
    gt_sizes: Sequence[int] | Tensor,  # M_i
    *,
    thresholds: Sequence[float],
    labels: Sequence[int],
    allow_low_quality: bool = False,
    d2_compat: bool = False,
    ignore_boxes: Tensor | None = None,  # (sum of ignore_sizes, 4)
    ignore_sizes: Sequence[int] | Tensor = (),
    ignore_iof: float = 0.5,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    scale_clamp: float = math.log(1000.0 / 16),
) -> ReassignedAnchors:
    """Move every anchor by its deltas, match the result, and encode its matched box.

    Consistent optimisation (Kong et al. 2019, Eq. 1 and 2) and every stage after the first need
    this: ``Box2BoxTransform.apply_deltas``, :func:`match_anchors` and ``get_deltas`` in one call,
    without the M x R matrix. An anchor is left where it is if its refined box is not finite or has
    no area.

    Args:
        anchors: (R, 4) shared by the images, or (N, R, 4), for example from another stage.
        deltas: (N, R, 4) ``dx, dy, dw, dh``.
        weights: positive factors of dx, dy, dw, dh, as in Detectron2's ``Box2BoxTransform``.
        scale_clamp: upper bound of dw and dh, so that exp cannot overflow.

    The other arguments are those of :func:`match_anchors`.

    Returns:
        :class:`ReassignedAnchors`. Targets are also 0 for a foreground anchor if it or its matched
        box has no area.

    Raises:
        TypeError: a tensor is not floating point.
        ValueError: a shape, a device, a size or an option is wrong.
    """
    op = "reassign_anchors"
    if not isinstance(deltas, Tensor) or not deltas.is_floating_point():
        given = deltas.dtype if isinstance(deltas, Tensor) else type(deltas).__name__
        raise TypeError(f"{op}: deltas must be a floating-point tensor, got {given}")
    if isinstance(gt_sizes, Tensor):
        gt_sizes = host_sizes(op, "gt_sizes", gt_sizes)
    if isinstance(ignore_sizes, Tensor):
        ignore_sizes = host_sizes(op, "ignore_sizes", ignore_sizes)
    dtype = check_match(
        op, anchors, gt_boxes, gt_sizes, thresholds, labels, ignore_boxes, ignore_sizes, ignore_iof
    )
    if deltas.shape != (count(gt_sizes), anchors.shape[-2], 4):
        raise ValueError(
            f"{op}: deltas must have shape ({count(gt_sizes)}, {anchors.shape[-2]}, 4) for these "
            f"anchors and gt_sizes, got {tuple(deltas.shape)}"
        )
    if deltas.device != anchors.device:
        raise ValueError(f"{op}: deltas is on {deltas.device}, but anchors is on {anchors.device}")
    dtype = torch.promote_types(dtype, deltas.dtype)
    check_decoding(op, dtype, weights, scale_clamp)
    operator = _reassign_anchors
    if isinstance(gt_sizes, Tensor) or isinstance(ignore_sizes, Tensor):
        operator = _reassign_anchors_by_tensors
        gt_sizes, ignore_sizes = as_tensors(gt_sizes, ignore_sizes)
    return ReassignedAnchors(
        *operator(
            as_dtype(anchors, dtype),
            as_dtype(deltas, dtype),
            as_dtype(gt_boxes, dtype),
            gt_sizes,
            list(weights),
            scale_clamp,
            list(thresholds),
            list(labels),
            allow_low_quality,
            d2_compat,
            None if ignore_boxes is None else as_dtype(ignore_boxes, dtype),
            ignore_sizes,
            ignore_iof,
        )
    )
