"""box_iou_aligned: values and gradients by hand, on odd boxes, and against references."""

import math

import pytest
import torch

from resobj_d2 import ops
from resobj_d2.ops import reference

KINDS = ("iou", "giou")
NAN, INF = math.nan, math.inf


def random_pairs(count, seed=0, dtype=torch.float32, grid=None):
    """Pairs of which about half overlap; on a coarse grid many coordinates are equal."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, count, 2, generator=generator, dtype=dtype) * 30
    size = torch.exp(torch.rand(2, count, 2, generator=generator, dtype=dtype) * 4 - 1)
    if grid:
        corner, size = (corner / grid).round() * grid, (size / grid).round() * grid
    return torch.cat((corner, corner + size), dim=-1)


def odd_pairs():
    """All pairs of NaN, infinite, huge, tiny, empty and swapped-corner boxes."""
    odd = torch.tensor([NAN, INF, -INF, 0.0, 1.0, 1e30, -1e30, -3e38, 3e38, 5.0, 1e-30, 2.0])
    boxes = torch.cartesian_prod(odd, odd, odd, odd)[::37]
    return boxes.repeat_interleave(20, 0), boxes.roll(101, 0).repeat(20, 1)[: 20 * len(boxes)]


def gradients(pred, target, kind, upstream):
    pred, target = pred.detach().requires_grad_(), target.detach().requires_grad_()
    return torch.autograd.grad(ops.box_iou_aligned(pred, target, kind), (pred, target), upstream)


# pred, target, IoU, gradient of the IoU w.r.t. pred, GIoU, gradient of the GIoU w.r.t. pred.
# IoU = I/U; dI and dU are products of sides. For the first: I 1, U 7, hull 9.
BY_HAND = [
    (
        (0, 0, 2, 2), (1, 1, 3, 3),
        # x1: dI 0, dU -2; x2: dI 1, dU 2 - 1.
        1 / 7, (2 / 49, 2 / 49, 6 / 49, 6 / 49),
        # Plus U/C - 1. x1: dU -2, dC -3; x2: dU 1, dC 0.
        1 / 7 + 7 / 9 - 1,
        (2 / 49 - 2 / 9 + 21 / 81,) * 2 + (6 / 49 + 1 / 9,) * 2,
    ),
    # Inside: I is the area of pred, U and hull that of target.
    ((1, 1, 3, 2), (0, 0, 4, 4), 1 / 8, (-1 / 16, -1 / 8, 1 / 16, 1 / 8),
     1 / 8, (-1 / 16, -1 / 8, 1 / 16, 1 / 8)),
    # Apart: no IoU; the GIoU is U/C - 1 = 2/3 - 1. x1: dU -1, dC -1; y1 ties: dC -3/2, dU -1.
    ((0, 0, 1, 1), (2, 0, 3, 1), 0, (0, 0, 0, 0),
     -1 / 3, (-1 / 3 + 2 / 9, -1 / 3 + 1 / 3, 1 / 3, 1 / 3 - 1 / 3)),
    # Identical: the maximum.
    ((5, 5, 9, 9), (5, 5, 9, 9), 1, (0, 0, 0, 0), 1, (0, 0, 0, 0)),
    # A point on a point, and a point in a box: the IoU stays 0 however the point moves.
    ((1, 1, 1, 1), (1, 1, 1, 1), 0, (0, 0, 0, 0), 0, (0, 0, 0, 0)),
    ((1, 1, 1, 1), (0, 0, 2, 2), 0, (0, 0, 0, 0), 0, (0, 0, 0, 0)),
    ((NAN, 0, 2, 2), (1, 1, 3, 3), 0, (0, 0, 0, 0), -1, (0, 0, 0, 0)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pred, target, iou, grad_iou, giou, grad_giou", BY_HAND)
def test_by_hand(native_device, pred, target, iou, grad_iou, giou, grad_giou, kind, dtype):
    value, gradient = (iou, grad_iou) if kind == "iou" else (giou, grad_giou)
    pred = torch.tensor([pred], dtype=dtype, device=native_device)
    target = torch.tensor([target], dtype=dtype, device=native_device)
    for function in (ops.box_iou_aligned, reference.box_iou_aligned):
        result = function(pred, target, kind)
        assert result.shape == (1,) and result.dtype == dtype
        assert result.item() == pytest.approx(value, abs=1e-6)
    one = torch.ones(1, dtype=dtype, device=native_device)
    backward = reference.box_iou_aligned_backward(one, pred, target, kind)
    for grad_pred in (gradients(pred, target, kind, one)[0], backward[0]):
        assert grad_pred[0].tolist() == pytest.approx(gradient, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_diagonal_of_the_matrix(impl, kind):
    for pairs in (random_pairs(300), random_pairs(300, 1, grid=4.0), odd_pairs()):
        pred, target = (boxes[:1500].to(impl.device) for boxes in pairs)
        expected = torch.cat(
            [
                impl.pairwise_box_iou(p, t, kind).diagonal()
                for p, t in zip(pred.split(50), target.split(50), strict=True)
            ]
        )
        assert torch.equal(impl.box_iou_aligned(pred, target, kind), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(impl, kind):
    pred, target = random_pairs(40, dtype=torch.float64).to(impl.device)
    pred[:5], target[:5] = pred[:5].flip(-1), target[5:10]  # swapped corners
    torch.autograd.gradcheck(
        lambda a, b: impl.box_iou_aligned(a, b, kind),
        (pred.requires_grad_(), target.requires_grad_()),
    )


@pytest.mark.parametrize("side, row", [(0, 0), (0, 3000), (1, 4999)])
def test_one_crossed_box_among_many_is_sorted_too(impl, side, row):
    pairs = random_pairs(5000, 3)
    crossed = pairs.clone()
    crossed[side, row] = crossed[side, row, [0, 3, 2, 1]]
    upstream = torch.rand(5000)
    expected = ops.box_iou_aligned(*pairs, "giou")
    result = impl.box_iou_aligned(*crossed.to(impl.device), "giou").cpu()
    assert torch.equal(result, expected)
    wanted = gradients(*pairs, "giou", upstream)
    assert wanted[side][row].any()
    wanted[side][row] = wanted[side][row, [0, 3, 2, 1]]
    leaves = [x.to(impl.device).requires_grad_() for x in crossed]
    result = impl.box_iou_aligned(*leaves, "giou")
    found = torch.autograd.grad(result, leaves, upstream.to(impl.device))
    torch.testing.assert_close([x.cpu() for x in found], list(wanted))


@pytest.mark.parametrize("kind", KINDS)
def test_backward_formula_is_the_gradient_of_the_reference(kind):
    # On a grid, so that coordinates tie; at the kink of touching boxes autograd may differ.
    pred, target = random_pairs(2000, 2, torch.float64, grid=2.0)
    touching = torch.minimum(pred[:, 2:], target[:, 2:]) == torch.maximum(
        pred[:, :2], target[:, :2]
    )
    kink = touching.any(dim=1)
    pred, target = pred[~kink].requires_grad_(), target[~kink].requires_grad_()
    assert len(pred) > 1000 and (pred == target).any()
    weights = torch.linspace(-1, 2, len(pred), dtype=torch.float64)
    expected = torch.autograd.grad(
        reference.box_iou_aligned(pred, target, kind), (pred, target), weights
    )
    formula = reference.box_iou_aligned_backward(weights, pred.detach(), target.detach(), kind)
    torch.testing.assert_close(formula, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_kernel_gradient_agrees_with_the_formula(native_device, dtype, tolerance, kind):
    for seed, grid in ((0, None), (1, 2.0)):
        pred, target = random_pairs(5000, seed, dtype, grid).to(native_device)
        upstream = torch.linspace(-1, 2, 5000, dtype=dtype, device=native_device)
        expected = reference.box_iou_aligned_backward(upstream, pred, target, kind)
        result = gradients(pred, target, kind, upstream)
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_torchvision(impl, kind):
    boxes = pytest.importorskip("torchvision.ops")
    peer = boxes.box_iou if kind == "iou" else boxes.generalized_box_iou
    pred, target = random_pairs(50, 3, torch.float64)
    result = impl.box_iou_aligned(pred.to(impl.device), target.to(impl.device), kind).cpu()
    torch.testing.assert_close(result, peer(pred, target).diagonal(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_always_finite(native_device, kind):
    pred, target = (boxes.to(native_device) for boxes in odd_pairs())
    for grad in gradients(pred, target, kind, pred.new_ones(len(pred))):
        assert grad.isfinite().all() and grad.any()


def test_empty(impl):
    empty = torch.empty(0, 4, device=impl.device, requires_grad=True)
    result = impl.box_iou_aligned(empty, empty)
    assert result.shape == (0,)
    assert torch.autograd.grad(result.sum(), empty)[0].shape == (0, 4)


def test_not_contiguous(native_device):
    pred, target = random_pairs(50).to(native_device)
    upstream = torch.linspace(-1, 2, 50, device=native_device)
    strided = torch.stack((upstream, upstream), dim=1)[:, 0]
    wide = torch.cat((pred, pred), dim=1)[:, :4], target.t().contiguous().t()
    assert torch.equal(ops.box_iou_aligned(*wide), ops.box_iou_aligned(pred, target))
    for a, b in zip(
        gradients(*wide, "giou", strided), gradients(pred, target, "giou", upstream), strict=True
    ):
        assert torch.equal(a, b)


GOOD = torch.zeros(2, 4)
BAD_ARGUMENTS = [
    ((GOOD, GOOD, "iof"), ValueError, "kind must be one of iou, giou, diou, ciou, got 'iof'"),
    ((GOOD.long(), GOOD), TypeError, "pred must be a floating-point tensor, got torch.int64"),
    ((GOOD, [[0, 0, 1, 1]]), TypeError, "target must be a floating-point tensor, got list"),
    ((torch.zeros(2, 5), GOOD), ValueError, r"pred must have shape .* got \(2, 5\)"),
    ((GOOD, GOOD[:1]), ValueError, r"target must have the shape of pred, \(2, 4\), got \(1, 4\)"),
    ((GOOD, GOOD.to("meta")), ValueError, "target is on meta, but pred is on cpu"),
]


@pytest.mark.parametrize("arguments, error, message", BAD_ARGUMENTS)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match="box_iou_aligned: " + message):
        ops.box_iou_aligned(*arguments)


@pytest.mark.parametrize(
    "pred, target, kind, message",
    [
        (GOOD.half(), GOOD.half(), "iou", "pred must be float32 or float64"),
        (GOOD, GOOD.double(), "iou", "target must have the dtype of pred"),
        (torch.zeros(2, 3), GOOD, "iou", "pred must have shape"),
        (GOOD, GOOD[:1], "iou", "target must have the shape of pred"),
        (GOOD, GOOD, "iof", "unknown kind iof"),
    ],
)
def test_kernels_reject_what_the_wrapper_rejects(native_device, pred, target, kind, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.resobj_d2.box_iou_aligned(pred.to(native_device), target.to(native_device), kind)
