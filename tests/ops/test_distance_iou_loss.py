"""DIoU and CIoU, as matrix, pair by pair and as losses: by hand and against torchvision."""

import math

import pytest
import torch

from resobj_d2 import ops
from resobj_d2.ops import reference
from tests.ops.test_giou_loss import BAD_ARGUMENTS, random_pairs

NAN, INF = math.nan, math.inf
LOSSES = {"diou": ops.diou_loss, "ciou": ops.ciou_loss}


def ciou_term(iou, first, second):
    """alpha v of boxes with these ratios of width and height."""
    v = 4 / math.pi**2 * (math.atan(first) - math.atan(second)) ** 2
    return v * v / (1 - iou + v) if v else 0.0


# a, b, IoU, squared distance of the centres / squared diagonal, ratios of width and height
PAIRS = [
    ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7, 2 / 18, 1, 1),
    ((2, 2, 0, 0), (1, 1, 3, 3), 1 / 7, 2 / 18, 1, 1),  # the same with swapped corners
    ((0, 0, 4, 4), (1, 1, 3, 2), 2 / 16, 0.25 / 32, 1, 2),
    ((0, 0, 1, 1), (3, 0, 5, 1), 0, 12.25 / 26, 1, 2),
    ((5, 5, 9, 6), (5, 5, 9, 6), 1, 0, 4, 4),
    # Without area: a point has no aspect ratio; a line has that of a box of no height.
    ((1, 1, 1, 1), (1, 1, 1, 1), 0, 0, 1, 1),
    ((1, 1, 1, 1), (0, 0, 2, 1), 0, 0.25 / 5, 1, 1),
    ((0, 0, 2, 0), (0, 0, 2, 2), 0, 1 / 8, INF, 1),
]


def columns():
    a, b, iou, distance, *ratios = zip(*PAIRS, strict=True)
    boxes = [torch.tensor(x, dtype=torch.float64) for x in (a, b)]
    diou = torch.tensor(iou, dtype=torch.float64) - torch.tensor(distance, dtype=torch.float64)
    terms = [ciou_term(*x) for x in zip(iou, *ratios, strict=True)]
    return *boxes, {"diou": diou, "ciou": diou - torch.tensor(terms, dtype=torch.float64)}


@pytest.mark.parametrize("kind", LOSSES)
def test_by_hand(impl, kind):
    first, second, expected = columns()
    first, second, value = (x.to(impl.device) for x in (first, second, expected[kind]))
    close = {"rtol": 0, "atol": 3e-7}  # 1e-7 in the divisors
    torch.testing.assert_close(impl.box_iou_aligned(first, second, kind), value, **close)
    matrix = impl.pairwise_box_iou(first, second, kind)
    torch.testing.assert_close(matrix.diagonal(), value, **close)
    loss = getattr(impl, f"{kind}_loss")(first, second)
    torch.testing.assert_close(loss, (1 - value).sum(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_agrees_with_torchvision(kind):
    peers = pytest.importorskip("torchvision.ops")
    matrix = {"diou": peers.distance_box_iou, "ciou": peers.complete_box_iou}[kind]
    peer = {"diou": peers.distance_box_iou_loss, "ciou": peers.complete_box_iou_loss}[kind]
    pred, target = random_pairs(200, 3, torch.float64)
    torch.testing.assert_close(
        ops.pairwise_box_iou(pred, target[:50], kind), matrix(pred, target[:50]), rtol=0, atol=1e-6
    )
    for reduction in ops._reduction.REDUCTIONS:
        leaves = [pred.clone().requires_grad_() for _ in range(2)]
        ours = LOSSES[kind](leaves[0], target, reduction=reduction)
        theirs = peer(leaves[1], target, reduction=reduction)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        # That theirs agrees shows that alpha is a constant: they detach it too.
        ours, theirs = (
            torch.autograd.grad(x.sum(), leaf)[0]
            for x, leaf in zip((ours, theirs), leaves, strict=True)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_alpha_is_a_constant_of_the_gradient():
    """A wide box around a square: moving no edge but x2, at IoU 1/2 and v of arctan 2 and 1."""
    pred = torch.tensor([[0.0, 0, 4, 2]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[1.0, 0, 3, 2]], dtype=torch.float64)
    gradients = [
        torch.autograd.grad(ops.box_iou_aligned(pred, target, kind).sum(), pred)[0][0, 2].item()
        for kind in ("diou", "ciou")
    ]
    difference = math.atan(2) - math.atan(1)
    v = 4 / math.pi**2 * difference**2
    alpha = v / (0.5 + v)
    slope = 8 / math.pi**2 * difference * 2 / (4**2 + 2**2)  # d arctan(w / h) = h / (w^2 + h^2)
    assert gradients[0] - gradients[1] == pytest.approx(alpha * slope, rel=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_gradcheck_of_the_aligned_form(kind):
    pred, target = random_pairs(20, 4, torch.float64, crossed=0.3)
    pred.requires_grad_(), target.requires_grad_()
    if kind == "ciou":  # its gradient is not the derivative: alpha is a constant
        a, b = pred.detach(), target.detach()
        frozen = ops.box_iou_aligned(a, b, "ciou") - ops.box_iou_aligned(a, b, "diou")
        grads = torch.autograd.grad(ops.box_iou_aligned(pred, target, kind).sum(), (pred, target))
        diou = torch.autograd.grad(ops.box_iou_aligned(pred, target, "diou").sum(), (pred, target))
        assert frozen.lt(0).any() and all((g - d).any() for g, d in zip(grads, diou, strict=True))
        return
    assert torch.autograd.gradcheck(lambda a, b: ops.box_iou_aligned(a, b, kind), (pred, target))


@pytest.mark.parametrize("kind, worst", [("diou", -1.0), ("ciou", -1.5)])
@pytest.mark.parametrize("odd", [NAN, INF, 1e30])
def test_a_coordinate_that_cannot_be_squared_gives_the_worst_value(kind, worst, odd):
    first = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]])
    first[0, 2] = odd
    matrix = ops.pairwise_box_iou(first, first, kind)
    assert matrix[0].tolist() == matrix[:, 0].tolist() == [worst, worst] and matrix[1, 1] == 1
    pred = first.clone().requires_grad_()
    value = ops.box_iou_aligned(pred, first.flip(0), kind)
    assert value.tolist() == [worst, worst]
    assert not torch.autograd.grad(value.sum(), pred)[0].any()


@pytest.mark.parametrize("kind", LOSSES)
def test_the_matrix_is_a_constant_and_fills_out(kind):
    first, second = random_pairs(5, 5)
    matrix = ops.pairwise_box_iou(first.requires_grad_(), second, kind)
    assert not matrix.requires_grad
    out = torch.empty(5, 10)[:, ::2]
    assert ops.pairwise_box_iou(first, second, kind, out=out) is out and torch.equal(out, matrix)


@pytest.mark.parametrize("kind", LOSSES)
def test_finite_for_every_finite_box(kind):
    odd = torch.tensor([-3e38, -1e18, 0.0, 1e-30, 1.0, 5.0, 2e18, 3e38])
    boxes = torch.cartesian_prod(odd, odd, odd, odd)
    order = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(0))
    for target in (boxes, boxes[order]):
        pred = boxes.clone().requires_grad_()
        loss = LOSSES[kind](pred, target, reduction="none")
        assert 0 <= loss.min() and loss.max() <= 2.5 + 1e-6
        assert torch.autograd.grad(loss.sum(), pred)[0].isfinite().all()


@pytest.mark.parametrize("kind", LOSSES)
def test_pairs_outside_the_mask_contribute_nothing_even_if_not_finite(kind):
    pred, target = random_pairs(30, 9)
    mask = torch.arange(30) % 3 > 0
    expected = reference.elementwise_box_loss(pred[mask], target[mask], None, kind).sum()
    pred[~mask], target[~mask] = NAN, INF
    loss = LOSSES[kind](pred.requires_grad_(), target, mask)
    torch.testing.assert_close(loss, expected)
    assert not torch.autograd.grad(loss, pred)[0][~mask].any()
    pred = pred.detach().clone()
    pred[1] = NAN
    assert LOSSES[kind](pred, target, mask).isnan()


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("arguments, error, message", BAD_ARGUMENTS)
def test_errors_name_the_argument(kind, arguments, error, message):
    with pytest.raises(error, match=f"{kind}_loss: " + message):
        LOSSES[kind](*arguments)
