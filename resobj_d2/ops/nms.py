"""Non-maximum suppression per class: greedy, soft and matrix NMS."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import reference
from ._checks import (
    compute_dtype,
    require_floating,
    require_integer,
    require_positive,
    require_same_device,
)
from ._library import define_op

SOFT_METHODS = ("linear", "gaussian")
MATRIX_KERNELS = ("linear", "gaussian")


def _limit(boxes, max_output):
    return boxes.shape[0] if max_output < 0 else max_output


def _dynamic_count():
    return torch.library.get_ctx().new_dynamic_size()


def _fake_batched(boxes, scores, idxs, iou_threshold, max_output=-1):
    return idxs.new_empty(_dynamic_count())


def _fake_batched_padded(boxes, scores, idxs, iou_threshold, max_output=-1):
    return idxs.new_empty(_limit(boxes, max_output)), idxs.new_empty(())


def _fake_soft(boxes, scores, idxs, method, iou_threshold, sigma, min_score, max_output=-1):
    count = _dynamic_count()
    return idxs.new_empty(count), scores.new_empty(count)


def _fake_soft_padded(boxes, scores, idxs, method, iou_threshold, sigma, min_score, max_output=-1):
    limit = _limit(boxes, max_output)
    return idxs.new_empty(limit), scores.new_empty(limit), idxs.new_empty(())


def _fake_matrix(boxes, scores, idxs, kernel, sigma):
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


_ROWS_DIFFER = "its items may keep different numbers of boxes; use {}_padded"

for _name, _reference, _fake, _no_vmap in (
    (
        "batched_nms",
        reference.batched_nms,
        _fake_batched,
        _ROWS_DIFFER.format("batched_nms"),
    ),
    (
        "batched_nms_padded",
        reference.batched_nms_padded,
        _fake_batched_padded,
        "",
    ),
    (
        "soft_nms",
        reference.soft_nms,
        _fake_soft,
        _ROWS_DIFFER.format("soft_nms"),
    ),
    (
        "soft_nms_padded",
        reference.soft_nms_padded,
        _fake_soft_padded,
        "",
    ),
    (
        "matrix_nms",
        reference.matrix_nms,
        _fake_matrix,
        "",
    ),
):
    define_op(_name, reference=_reference, fake=_fake, no_vmap=_no_vmap)


def batched_nms(
    boxes: Tensor,  # (C, 4)
    scores: Tensor,  # (C,)
    idxs: Tensor,  # (C,)
    iou_threshold: float,
    max_output: int = -1,
) -> Tensor:  # (D,)
    """Greedy non-maximum suppression within each class.

    In order of descending score, a box is kept unless its IoU with a kept box of its class exceeds
    ``iou_threshold``. The same boxes are kept as by torchvision's ``nms`` run class by class; boxes
    are not shifted apart by class, which would cost precision.

    Args:
        boxes: (C, 4) XYXY in any one unit, floating point. A box with a NaN coordinate, without
            area or with swapped corners overlaps nothing, so it is kept.
        scores: (C,) floating point. Boxes with a NaN score are dropped.
        idxs: (C,) integers, the class (or pyramid level, or image) of each box; any value.
        iou_threshold: 0 or more.
        max_output: stop after this many boxes, which are the first of the full result; -1 means no
            limit.

    Returns:
        (D,) int64, the kept boxes by descending score, ties by index. On CUDA
        the host waits for D; :func:`batched_nms_padded` does not.

    Raises:
        TypeError: ``boxes`` or ``scores`` is not floating point, or ``idxs`` is not integer.
        ValueError: a shape, a device or a number is wrong.
    """
    op = "batched_nms"
    boxes, scores, idxs = _checked_candidates(op, boxes, scores, idxs)
    _check_greedy(op, iou_threshold, max_output)
    if boxes.shape[0] == 0:
        return idxs.new_empty(0)
    return torch.ops.resobj_d2.batched_nms(boxes, scores, idxs, iou_threshold, max_output)


def batched_nms_padded(
    boxes: Tensor,  # (C, 4)
    scores: Tensor,  # (C,)
    idxs: Tensor,  # (C,)
    iou_threshold: float,
    max_output: int = -1,
) -> tuple[Tensor, Tensor]:  # (P,), ()
    """:func:`batched_nms` with a result whose shape does not depend on the data.

    The host never waits for the device, so it can be captured in a CUDA graph.

    Returns:
        (P,) int64, the kept boxes as from :func:`batched_nms`, padded with -1; P is ``max_output``,
        or C if that is -1. And their number, a 0-d int64 tensor.
    """
    op = "batched_nms_padded"
    boxes, scores, idxs = _checked_candidates(op, boxes, scores, idxs)
    _check_greedy(op, iou_threshold, max_output)
    return torch.ops.resobj_d2.batched_nms_padded(boxes, scores, idxs, iou_threshold, max_output)


def nms(
    boxes: Tensor,  # (C, 4)
    scores: Tensor,  # (C,)
    iou_threshold: float,
    max_output: int = -1,
) -> Tensor:  # (D,)
    """:func:`batched_nms` of boxes that are all of one class."""
    op = "nms"
    candidates = _of_one_class(op, boxes, scores)
    _check_greedy(op, iou_threshold, max_output)
    if boxes.shape[0] == 0:
        return candidates[2]
    return torch.ops.resobj_d2.batched_nms(*candidates, iou_threshold, max_output)


def nms_padded(
    boxes: Tensor,  # (C, 4)
    scores: Tensor,  # (C,)
    iou_threshold: float,
    max_output: int = -1,
) -> tuple[Tensor, Tensor]:  # (P,), ()
    """:func:`batched_nms_padded` of boxes that are all of one class."""
    op = "nms_padded"
    candidates = _of_one_class(op, boxes, scores)
    _check_greedy(op, iou_threshold, max_output)
    return torch.ops.resobj_d2.batched_nms_padded(*candidates, iou_threshold, max_output)


def soft_nms(
    boxes: Tensor,  # (C, 4)
    scores: Tensor,  # (C,)
    idxs: Tensor,  # (C,)
    *,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 0.001,
    max_output: int = -1,
) -> tuple[Tensor, Tensor]:  # (D,), (D,)
    """Soft-NMS (Bodla et al., ICCV 2017) within each class.

    Repeatedly takes the box with the highest score (ties: the first) and multiplies the
    scores of the remaining boxes of its class by

    - ``"linear"``: 1 - IoU, if the IoU with that box is ``iou_threshold`` or more;
    - ``"gaussian"``: exp(-IoU^2 / ``sigma``), whatever the IoU.

    Args:
        boxes: (C, 4) XYXY in any one unit, floating point. A box with a NaN coordinate, without
            area or with swapped corners overlaps nothing, so its score is unchanged.
        scores: (C,) floating point, probabilities or other finite numbers. Boxes with a NaN or
            infinite score are dropped.
        idxs: (C,) integers, the class of each box; any value.
        method: ``"linear"`` or ``"gaussian"``.
        iou_threshold: 0 or more; used by the linear method only.
        sigma: at least 1.2e-38 (float64: 2.3e-308); used by the gaussian method only.
        min_score: 0 or more; stop when no remaining score reaches it.
        max_output: stop after this many boxes; -1 means no limit.

    Returns:
        (D,) int64, the boxes in the order in which they were taken, and (D,) their scores at that
        point, which descend; float64 if ``boxes`` or ``scores`` is, else float32. On CUDA the host
        waits for D; :func:`soft_nms_padded` does not.

    Raises:
        TypeError: ``boxes`` or ``scores`` is not floating point, or ``idxs`` is not integer.
        ValueError: a shape, a device, a number or ``method`` is wrong.
    """
    op = "soft_nms"
    candidates = _checked_candidates(op, boxes, scores, idxs)
    _check_soft(op, candidates[0].dtype, method, iou_threshold, sigma, min_score, max_output)
    return torch.ops.resobj_d2.soft_nms(
        *candidates, method, iou_threshold, sigma, min_score, max_output
    )


def soft_nms_padded(
    boxes: Tensor,  # (C, 4)
    scores: Tensor,  # (C,)
    idxs: Tensor,  # (C,)
    *,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 0.001,
    max_output: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:  # (P,), (P,), ()
    """:func:`soft_nms` with results whose shape does not depend on the data.

    The host never waits for the device, so it can be captured in a CUDA graph.

    Returns:
        (P,) int64, the boxes as from :func:`soft_nms`, padded with -1, and (P,) their new scores,
        padded with 0; P is ``max_output``, or C if that is -1. And their number, a 0-d int64
        tensor.
    """
    op = "soft_nms_padded"
    candidates = _checked_candidates(op, boxes, scores, idxs)
    _check_soft(op, candidates[0].dtype, method, iou_threshold, sigma, min_score, max_output)
    return torch.ops.resobj_d2.soft_nms_padded(
        *candidates, method, iou_threshold, sigma, min_score, max_output
    )


def matrix_nms(
    boxes: Tensor,  # (C, 4)
    scores: Tensor,  # (C,)
    idxs: Tensor,  # (C,)
    *,
    kernel: str = "gaussian",
    sigma: float = 0.5,
) -> Tensor:  # (C,)
    """Matrix NMS (Wang et al., SOLOv2, NeurIPS 2020, Eq. 4 and 5) on boxes, within each class.

    The score of box j is multiplied by the minimum of f(IoU_ij) / f(m_i) over the boxes i of its
    class with a higher score (ties: a lower index). m_i is the highest IoU of box i with a
    higher-scored box of its class, and says how likely i itself is suppressed. f is

    - ``"linear"``: f(x) = 1 - x; a box i with m_i = 1 is certainly suppressed and decays nothing;
    - ``"gaussian"``: f(x) = exp(-x^2 / ``sigma``).

    Args:
        boxes: (C, 4) XYXY in any one unit, floating point. A box with a NaN coordinate, without
            area or with swapped corners overlaps nothing, so its score is unchanged.
        scores: (C,) floating point, probabilities or other finite numbers. Boxes with a NaN or
            infinite score decay nothing and get score 0.
        idxs: (C,) integers, the class of each box; any value.
        kernel: ``"linear"`` or ``"gaussian"``.
        sigma: at least 1.2e-38 (float64: 2.3e-308); used by the gaussian kernel only. The default
            .5 is the factor 2 of the paper's code, which multiplies instead of dividing.

    Returns:
        (C,) the decayed scores, in the order of the boxes, to be thresholded or ranked; float64 if
        ``boxes`` or ``scores`` is, else float32.

    Raises:
        TypeError: ``boxes`` or ``scores`` is not floating point, or ``idxs`` is not integer.
        ValueError: a shape, a device, ``sigma`` or ``kernel`` is wrong.
    """
    op = "matrix_nms"
    candidates = _checked_candidates(op, boxes, scores, idxs)
    if kernel not in MATRIX_KERNELS:
        raise ValueError(f"{op}: kernel must be linear or gaussian, got {kernel!r}")
    require_positive(op, candidates[0].dtype, sigma=sigma)
    return torch.ops.resobj_d2.matrix_nms(*candidates, kernel, sigma)


def _checked_candidates(
    op: str, boxes: Tensor, scores: Tensor, idxs: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments, checked and converted to what the operators take."""
    if _are_ready(boxes, scores, idxs):
        return boxes, scores, idxs
    require_floating(op, boxes=boxes, scores=scores)
    require_integer(op, idxs=idxs)
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{op}: boxes must have shape (number, 4), got {tuple(boxes.shape)}")
    for name, value in (("scores", scores), ("idxs", idxs)):
        if value.dim() != 1 or value.shape[0] != boxes.shape[0]:
            raise ValueError(
                f"{op}: {name} must have shape ({boxes.shape[0]},), one for each box, "
                f"got {tuple(value.shape)}"
            )
    require_same_device(op, boxes=boxes, scores=scores, idxs=idxs)
    dtype = compute_dtype(boxes, scores)
    return boxes.to(dtype), scores.to(dtype), idxs.long()


def _of_one_class(op: str, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    require_floating(op, boxes=boxes, scores=scores)
    return _checked_candidates(op, boxes, scores, torch.zeros_like(scores, dtype=torch.int64))


def _are_ready(boxes: Tensor, scores: Tensor, idxs: Tensor) -> bool:
    """Fast path for valid inputs: on a few boxes all the checks take longer than the operator."""
    return (
        isinstance(boxes, Tensor)
        and isinstance(scores, Tensor)
        and isinstance(idxs, Tensor)
        and boxes.dtype in (torch.float32, torch.float64)
        and scores.dtype == boxes.dtype
        and idxs.dtype == torch.int64
        and boxes.dim() == 2
        and boxes.shape == (scores.numel(), 4)
        and scores.dim() == 1
        and scores.shape == idxs.shape
        and scores.device == boxes.device
        and idxs.device == boxes.device
    )


def _check_greedy(op: str, iou_threshold: float, max_output: int) -> None:
    if not iou_threshold >= 0:
        raise ValueError(f"{op}: iou_threshold must be 0 or more, got {iou_threshold}")
    if max_output < -1:
        raise ValueError(f"{op}: max_output must be -1 (no limit) or more, got {max_output}")
    if max_output >= 2**31:
        raise ValueError(f"{op}: max_output must be below 2^31, got {max_output}")


def _check_soft(
    op: str,
    dtype: torch.dtype,
    method: str,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    max_output: int,
) -> None:
    if method not in SOFT_METHODS:
        raise ValueError(f"{op}: method must be linear or gaussian, got {method!r}")
    _check_greedy(op, iou_threshold, max_output)
    require_positive(op, dtype, sigma=sigma)
    if not 0 <= min_score < math.inf:
        raise ValueError(f"{op}: min_score must be 0 or more, got {min_score}")
