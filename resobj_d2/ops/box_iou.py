"""Overlap of every box of one set with every box of another."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._library import define_op, mark_outputs_non_differentiable, no_backward

KINDS = ("iou", "giou", "iof")


def _fake(boxes1: Tensor, boxes2: Tensor, kind: str = "iou") -> Tensor:
    return boxes1.new_empty(boxes1.shape[0], boxes2.shape[0])


define_op(
    'pairwise_box_iou(Tensor boxes1, Tensor boxes2, str kind="iou") -> Tensor',
    reference=reference.pairwise_box_iou,
    fake=_fake,
    backward=no_backward("pairwise_box_iou has no gradient; use an aligned box loss instead"),
    setup_context=mark_outputs_non_differentiable,
)


def pairwise_box_iou(
    boxes1: Tensor,  # (M, 4)
    boxes2: Tensor,  # (R, 4)
    kind: str = "iou",
) -> Tensor:  # (M, R)
    """Overlap of each box of ``boxes1`` with each box of ``boxes2``.

    Boxes are XYXY in any one unit. The result carries no gradient: it is for matching, not for a
    loss.

    Args:
        boxes1: (M, 4) floating point, for example the ground truth of one image.
        boxes2: (R, 4) floating point, for example all its anchors. Same device.
        kind: ``"iou"``: intersection over union, in float32 bit-equal to Detectron2's
            ``pairwise_iou`` for finite boxes; 0 where the union is 0.
            ``"giou"``: generalized IoU (Rezatofighi et al., CVPR 2019), in [-1, 1]; equal to the
            IoU where the smallest enclosing box has no area.
            ``"iof"``: intersection over the area of the box from ``boxes2``, the share of an anchor
            that lies inside an ignore (crowd) region given in ``boxes1``; 0 for a box without area.

    Returns:
        (M, R) in float64 if an input is float64, else float32 (half precision is computed in
        float32). A pair with a NaN coordinate gets the worst value of its kind: 0, or -1 for GIoU.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: a shape, a device or ``kind`` is wrong.
    """
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        if not isinstance(boxes, Tensor) or not boxes.is_floating_point():
            found = boxes.dtype if isinstance(boxes, Tensor) else type(boxes).__name__
            raise TypeError(
                f"pairwise_box_iou: {name} must be a floating-point tensor, got {found}"
            )
        if boxes.dim() != 2 or boxes.shape[1] != 4:
            raise ValueError(
                f"pairwise_box_iou: {name} must have shape (number, 4), got {tuple(boxes.shape)}"
            )
    if boxes1.device != boxes2.device:
        raise ValueError(
            f"pairwise_box_iou: boxes2 is on {boxes2.device}, but boxes1 is on {boxes1.device}"
        )
    if kind not in KINDS:
        raise ValueError(f"pairwise_box_iou: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    dtype = torch.promote_types(torch.promote_types(boxes1.dtype, boxes2.dtype), torch.float32)
    return torch.ops.resobj_d2.pairwise_box_iou(boxes1.to(dtype), boxes2.to(dtype), kind)
