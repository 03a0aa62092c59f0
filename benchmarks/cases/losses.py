"""L1, L2, L3: focal, GIoU and balanced L1 loss with their gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import eager, inputs
from benchmarks.case import MIB, Call, Case, Target
from resobj_d2 import ops
from resobj_d2.ops import _one_pass as one_pass

CLASSES = 80
ANCHORS = 2 * inputs.NUM_ANCHORS  # two images


def in_one_pass(loss_of, pred: Tensor) -> Call:
    """The call as training makes it, which knows the gradient of its loss beforehand.

    With few numbers it makes no difference; a training step says it once for all of its losses.
    """
    if pred.numel() < one_pass.MIN_ELEMENTS:
        return loss_of

    def call() -> Tensor:
        with ops.expected_gradient(1.0):
            return loss_of()

    return call


def with_gradient(loss_of, pred: Tensor) -> Call:
    def call() -> tuple[Tensor, Tensor]:
        loss = loss_of()
        return loss.detach(), *torch.autograd.grad(loss, pred)

    return call


def verify(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(a[0], b[0], rtol=1e-4, atol=1e-4)
    # Half the gradients of the focal loss are below 1.3e-5.
    torch.testing.assert_close(a[1], b[1], rtol=1e-3, atol=1e-7)


# Focal loss from class labels with ignored anchors, as in Detectron2's RetinaNet.


def make_focal(count: int):
    def tensors(device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
        logits = torch.randn(count, CLASSES, generator=inputs.generator(seed)) - 4
        labels = inputs.class_labels(count, CLASSES, seed + 1)
        return logits.to(device).requires_grad_(), labels.to(device)

    return tensors


def ours_focal(logits: Tensor, labels: Tensor) -> Call:
    return with_gradient(
        in_one_pass(lambda: ops.sigmoid_focal_loss(logits, labels), logits), logits
    )


def one_hot(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The input of the peers' loss: the anchors that are not ignored, and their one-hot targets."""
    valid = labels >= 0
    target = F.one_hot(labels[valid], num_classes=CLASSES + 1)[:, :-1]
    return logits[valid], target.to(logits.dtype)


def fvcore_focal(logits: Tensor, labels: Tensor) -> Call:
    from fvcore.nn import sigmoid_focal_loss_jit

    options = {"alpha": 0.25, "gamma": 2.0, "reduction": "sum"}
    return with_gradient(
        lambda: sigmoid_focal_loss_jit(*one_hot(logits, labels), **options), logits
    )


def torchvision_focal(logits: Tensor, labels: Tensor) -> Call:
    from torchvision.ops import sigmoid_focal_loss

    options = {"alpha": 0.25, "gamma": 2.0, "reduction": "sum"}
    return with_gradient(lambda: sigmoid_focal_loss(*one_hot(logits, labels), **options), logits)


def compiled_focal(logits: Tensor, labels: Tensor) -> Call:
    from torchvision.ops import sigmoid_focal_loss

    def masked(logits: Tensor, labels: Tensor) -> Tensor:  # indexing would break the graph
        target = F.one_hot(labels.clamp(min=0), num_classes=CLASSES + 1)[:, :-1].to(logits.dtype)
        losses = sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2.0, reduction="none")
        return (losses * (labels >= 0)[:, None]).sum()

    function = torch.compile(masked, dynamic=False, fullgraph=True)
    return with_gradient(lambda: function(logits, labels), logits)


# GIoU


def make_boxes(count: int):
    def tensors(device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
        pred, target = inputs.box_pairs(count, seed)
        return pred.to(device).requires_grad_(), target.to(device)

    return tensors


def ours_giou(pred: Tensor, target: Tensor) -> Call:
    return with_gradient(in_one_pass(lambda: ops.giou_loss(pred, target), pred), pred)


def fvcore_giou(pred: Tensor, target: Tensor) -> Call:
    from fvcore.nn import giou_loss

    return with_gradient(lambda: giou_loss(pred, target, reduction="sum"), pred)


def torchvision_giou(pred: Tensor, target: Tensor) -> Call:
    from torchvision.ops import generalized_box_iou_loss

    return with_gradient(lambda: generalized_box_iou_loss(pred, target, reduction="sum"), pred)


def fast_box_ops_giou(pred: Tensor, target: Tensor) -> Call:
    from torch_fast_box_ops import generalized_box_iou_loss

    return with_gradient(lambda: generalized_box_iou_loss(pred, target, reduction="sum"), pred)


# Balanced L1 on deltas


def make_deltas(count: int):
    def tensors(device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
        pred = torch.randn(count, 4, generator=inputs.generator(seed))
        target = torch.randn(count, 4, generator=inputs.generator(seed + 1))
        return pred.to(device).requires_grad_(), target.to(device)

    return tensors


def ours_balanced(pred: Tensor, target: Tensor) -> Call:
    return with_gradient(in_one_pass(lambda: ops.balanced_l1_loss(pred, target), pred), pred)


def eager_balanced(pred: Tensor, target: Tensor) -> Call:
    return with_gradient(lambda: eager.balanced_l1(pred, target), pred)


def giou_case(count: int, target: Target) -> Case:
    return Case(
        id="L2",
        size=f"{count}",
        make=make_boxes(count),
        ours=ours_giou,
        peers={
            "fvcore": fvcore_giou,
            "torchvision": torchvision_giou,
            "torch-fast-box-ops": fast_box_ops_giou,
        },
        verify=verify,
        targets={"fvcore": target},
        reads=32 * count,
        writes=16 * count,
    )


def balanced_case(count: int, target: Target) -> Case:
    return Case(
        id="L3",
        size=f"{count}",
        make=make_deltas(count),
        ours=ours_balanced,
        peers={"eager": eager_balanced},
        verify=verify,
        targets={"eager": target},
        reads=32 * count,
        writes=16 * count,
    )


CASES = [
    Case(
        id="L1",
        size=f"{ANCHORS} x {CLASSES}",
        make=make_focal(ANCHORS),
        ours=ours_focal,
        peers={"fvcore jit": fvcore_focal, "torchvision": torchvision_focal},
        verify=verify,
        targets={
            "fvcore jit": Target(cpu=14, avx2=10, cuda=15),
            "torchvision": Target(cpu=13, avx2=9, cuda=15),
        },
        peak_mb=4 * ANCHORS * CLASSES / MIB + 1,
        reads=4 * ANCHORS * CLASSES + 8 * ANCHORS,
        writes=4 * ANCHORS * CLASSES,
        malloc=("warm", "default"),
    ),
    Case(
        id="L1",
        size=f"{inputs.NUM_ANCHORS} x {CLASSES} compiled",
        make=make_focal(inputs.NUM_ANCHORS),
        ours=ours_focal,
        peers={"torch.compile": compiled_focal},
        verify=verify,
        targets={"torch.compile": Target(cuda=1.2)},
        max_threads=1,
        slow=True,
    ),
    giou_case(500, Target(cpu=6, cuda=25)),
    giou_case(20_000, Target(cpu=14)),
    giou_case(ANCHORS, Target(cpu=14)),
    # Most of it is torch's autograd and its calls of two operators, whatever the kernels do.
    balanced_case(500, Target(cpu=2, cuda=8)),
    balanced_case(20_000, Target(cpu=6)),
    balanced_case(ANCHORS, Target(cpu=8)),
]
