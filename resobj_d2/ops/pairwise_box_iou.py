"""Overlap of every box of one set with every box of another set."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._checks import (
    as_dtype,
    compute_dtype,
    require_dtype,
    require_floating,
    require_same_device,
)
from ._library import define_op

KINDS = ("iou", "giou", "diou", "ciou", "iof")
# Composed of the IoU and plain torch; the kernels compute the others.
COMPOSED = ("diou", "ciou")


def _fake(boxes1: Tensor, boxes2: Tensor, kind: str = "iou") -> Tensor:
    return boxes1.new_empty(boxes1.shape[0], boxes2.shape[0])


define_op(
    "pairwise_box_iou",
    reference=reference.pairwise_box_iou,
    fake=_fake,
)


def _fake_out(boxes1: Tensor, boxes2: Tensor, kind: str, out: Tensor) -> None:
    pass


define_op(
    "_pairwise_box_iou_out",
    reference=reference.pairwise_box_iou_out,
    fake=_fake_out,
    no_vmap="it writes to out; call it without out",
)


def pairwise_box_iou(
    boxes1: Tensor,  # (M, 4)
    boxes2: Tensor,  # (R, 4)
    kind: str = "iou",
    *,
    out: Tensor | None = None,  # (M, R)
) -> Tensor:  # (M, R)
    """Overlap of each box of ``boxes1`` with each box of ``boxes2``.

    Boxes are XYXY in any one unit. The result carries no gradient: it is for matching, not for a
    loss.

    Args:
        boxes1: (M, 4) floating point, for example the ground truth of one image.
        boxes2: (R, 4) floating point, for example all its anchors; same device.
        kind: ``"iou"``: intersection over union, 0 where the union is 0; in float32, for finite
            boxes, bit-identical to Detectron2's ``pairwise_iou``.
            ``"giou"``: generalized IoU (Rezatofighi et al., CVPR 2019), in [-1, 1]; equal to the
            IoU where the smallest enclosing box has no area. The corners of each box are sorted
            first, as in :func:`giou_loss`; to the other kinds, to matching and to NMS a box with
            swapped corners overlaps nothing.
            ``"diou"``: distance IoU (Zheng et al., AAAI 2020, Eq. 6 and 7), in [-1, 1]: the IoU
            minus the squared distance of the centres over the squared diagonal of the smallest
            enclosing box; ``"ciou"``: complete IoU (Eq. 8 to 11), in [-1.5, 1], also minus a
            term for different aspect ratios. Corners are sorted as for GIoU. They take several
            temporary (M, R) tensors.
            ``"iof"``: intersection over the area of the ``boxes2`` box, the fraction of an
            anchor inside an ignore (crowd) region in ``boxes1``; 0 for a box without area.
        out: tensor to write the result to and return: of the result's shape, dtype and device, any
            strides. It must not require a gradient or share memory with the boxes. Reusing it
            saves an allocation per call.

    Returns:
        (M, R) in float64 if an input is float64, else float32 (half precision is computed in
        float32). A pair with a NaN coordinate gets the worst value of its kind: 0, -1 for GIoU
        and DIoU, -1.5 for CIoU; so does for DIoU and CIoU one with a coordinate beyond 1e18
        (float64: 3e150).

    Raises:
        TypeError: an argument is not a floating-point tensor, or ``out`` has the wrong dtype.
        ValueError: a shape, a device or ``kind`` is wrong, or ``out`` requires a gradient.
    """
    op = "pairwise_box_iou"
    require_floating(op, boxes1=boxes1, boxes2=boxes2)
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        if boxes.dim() != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{op}: {name} must have shape (number, 4), got {tuple(boxes.shape)}")
    require_same_device(op, boxes1=boxes1, boxes2=boxes2)
    if kind not in KINDS:
        raise ValueError(f"{op}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    dtype = compute_dtype(boxes1, boxes2)
    boxes1, boxes2 = as_dtype(boxes1, dtype), as_dtype(boxes2, dtype)
    if out is None:
        if kind in COMPOSED:
            return _composed(boxes1, boxes2, kind)
        return torch.ops.resobj_d2.pairwise_box_iou(boxes1, boxes2, kind)
    require_dtype(op, dtype, out=out)
    require_same_device(op, boxes1=boxes1, out=out)
    if out.shape != (len(boxes1), len(boxes2)):
        raise ValueError(
            f"{op}: out must have shape {(len(boxes1), len(boxes2))}, got {tuple(out.shape)}"
        )
    if out.requires_grad:
        raise ValueError(f"{op}: out must not require a gradient: the result has none")
    if kind in COMPOSED:
        return out.copy_(_composed(boxes1, boxes2, kind))
    target = (
        out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    )
    torch.ops.resobj_d2._pairwise_box_iou_out(boxes1.detach(), boxes2.detach(), kind, target)
    return out if target is out else out.copy_(target)


def _composed(boxes1: Tensor, boxes2: Tensor, kind: str) -> Tensor:
    def iou(first: Tensor, second: Tensor) -> Tensor:
        return torch.ops.resobj_d2.pairwise_box_iou(first[:, 0], second, "iou")

    return reference.distance_overlap(boxes1.detach()[:, None], boxes2.detach(), kind, iou)
