"""The distance IoU and complete IoU losses, composed of plain torch operators."""

from __future__ import annotations

from torch import Tensor

from . import reference
from ._checks import as_dtype, compute_dtype, require_box_pairs
from ._reduction import check_reduction, reduce_terms


def diou_loss(
    pred: Tensor,  # (..., 4)
    target: Tensor,  # (..., 4)
    mask: Tensor | None = None,  # (...) bool
    *,
    weight: Tensor | None = None,  # broadcasts to (...)
    reduction: str = "sum",
) -> Tensor:  # (), or (...) for "none"
    """``1 - DIoU``, summed over pairs of boxes (Zheng et al., AAAI 2020, Eq. 7).

    ``DIoU = I / (U + 1e-7) - d^2 / (c^2 + 1e-7)`` with the areas of intersection and union, the
    distance d of the boxes' centres, and the diagonal c of the smallest enclosing box.

    Args:
        pred, target, mask, weight, reduction: see :func:`resobj_d2.ops.giou_loss`, also for swapped
            corners, large coordinates, pairs outside the mask and NaN.

    Returns:
        Scalar, or (...) for ``"none"``, in float64 if an input is float64, else float32; half
        precision is computed in float32 and its gradient comes back in half precision.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape, a device or ``reduction`` is wrong, or ``target`` requires a gradient.
    """
    return _box_loss("diou_loss", pred, target, mask, weight, reduction)


def ciou_loss(
    pred: Tensor,  # (..., 4)
    target: Tensor,  # (..., 4)
    mask: Tensor | None = None,  # (...) bool
    *,
    weight: Tensor | None = None,  # broadcasts to (...)
    reduction: str = "sum",
) -> Tensor:  # (), or (...) for "none"
    """``1 - CIoU``, summed over pairs of boxes (Zheng et al., AAAI 2020, Eq. 10).

    ``CIoU = DIoU - alpha v`` with ``v = 4 / pi^2 (arctan(w_t / h_t) - arctan(w_p / h_p))^2`` for
    the aspect ratios and ``alpha = v / (1 - IoU + v + 1e-7)``, which is a constant of the gradient.
    v is 0 if the longer side of a box is 1e-7 or less, which has no aspect ratio.

    Arguments, result and errors are those of :func:`resobj_d2.ops.diou_loss`.
    """
    return _box_loss("ciou_loss", pred, target, mask, weight, reduction)


def _box_loss(
    op: str,
    pred: Tensor,
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    reduction: str,
) -> Tensor:
    require_box_pairs(op, pred, target, mask)
    check_reduction(op, reduction, weight, pred.shape[:-1], pred)
    dtype = compute_dtype(weight, pred, target)
    pred, target = as_dtype(pred, dtype), as_dtype(target, dtype)

    def terms() -> Tensor:
        kind = op.removesuffix("_loss")
        return reference.elementwise_box_loss(pred, target, mask, kind)

    return reduce_terms(terms, lambda: terms().sum(), pred.shape[:-1], mask, weight, reduction)
