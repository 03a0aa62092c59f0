"""giou_loss by hand, on odd boxes, against its peers, and kernels against the reference."""

import math

import pytest
import torch

from resobj_d2 import ops
from resobj_d2.ops import reference

NAN, INF = math.nan, math.inf


def random_pairs(count, seed=0, dtype=torch.float32, grid=None, crossed=0.0):
    """Pairs of which about half overlap; ``crossed`` is the fraction of pred's sides swapped."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, count, 2, generator=generator, dtype=dtype) * 30
    size = torch.exp(torch.rand(2, count, 2, generator=generator, dtype=dtype) * 4 - 1)
    if grid:
        corner, size = (corner / grid).round() * grid, (size / grid).round() * grid
    pred, target = torch.cat((corner, corner + size), dim=-1)
    for first, last in ((0, 2), (1, 3)):
        rows = torch.rand(count, generator=generator) < crossed
        pred[rows, first], pred[rows, last] = pred[rows, last], pred[rows, first]
    return pred, target


def odd_boxes():
    """Huge, tiny, empty and swapped-corner boxes, all finite."""
    odd = torch.tensor([-3e38, -1e30, -1e18, 0.0, 1e-30, 1.0, 1.5, 5.0, 1e15, 2e18, 1e30, 3e38])
    return torch.cartesian_prod(odd, odd, odd, odd)


def gradient(loss, pred):
    return torch.autograd.grad(loss, pred)[0]


# pred, target, loss, gradient w.r.t. pred
BY_HAND = [
    # I 1, U 7, hull 9; see test_box_iou_aligned.
    ((0, 0, 2, 2), (1, 1, 3, 3), 2 - 1 / 7 - 7 / 9,
     (-2 / 49 + 2 / 9 - 21 / 81,) * 2 + (-6 / 49 - 1 / 9,) * 2),
    # The same box with swapped corners: each coordinate gets the gradient of its sorted position.
    ((2, 2, 0, 0), (1, 1, 3, 3), 2 - 1 / 7 - 7 / 9,
     (-6 / 49 - 1 / 9,) * 2 + (-2 / 49 + 2 / 9 - 21 / 81,) * 2),
    ((2, 0, 0, 2), (1, 1, 3, 3), 2 - 1 / 7 - 7 / 9,
     (-6 / 49 - 1 / 9, -2 / 49 + 2 / 9 - 21 / 81, -2 / 49 + 2 / 9 - 21 / 81, -6 / 49 - 1 / 9)),
    ((0, 0, 1, 1), (2, 0, 3, 1), 4 / 3, (1 / 9, 0, -1 / 3, 0)),
    ((5, 5, 9, 9), (5, 5, 9, 9), 0, (0, 0, 0, 0)),
    # No area at all, in the same point and apart.
    ((1, 1, 1, 1), (1, 1, 1, 1), 1, (0, 0, 0, 0)),
    ((0, 0, 0, 0), (3, 4, 3, 4), 2, (0, 0, 0, 0)),
    # Huge: areas beyond float32. Gradients are of the order of 1 / side.
    ((1e30, 1e30, 3e30, 3e30), (0, 0, 2e30, 2e30), 2 - 1 / 7 - 7 / 9, (0, 0, 0, 0)),
    ((0, 0, 2e30, 2e30), (0, 0, 2e30, 2e30), 0, (0, 0, 0, 0)),
    ((-3e38, -3e38, 3e38, 3e38), (-3e38, -3e38, 3e38, 0), 0.5, (0, 0, 0, 0)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pred, target, expected, grad", BY_HAND)
def test_by_hand(impl, pred, target, expected, grad, dtype):
    pred = torch.tensor([pred], dtype=dtype, device=impl.device, requires_grad=True)
    target = torch.tensor([target], dtype=dtype, device=impl.device)
    loss = impl.giou_loss(pred, target)
    assert loss.shape == () and loss.dtype == dtype
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert gradient(loss, pred)[0].tolist() == pytest.approx(grad, abs=1e-6)


def test_an_empty_box_can_grow(impl):
    pred = torch.tensor([[4.0, 2.0, 4.0, 8.0]], device=impl.device, requires_grad=True)
    target = torch.tensor([[0.0, 0.0, 10.0, 10.0]], device=impl.device)
    x1, y1, x2, y2 = gradient(impl.giou_loss(pred, target), pred)[0].tolist()
    # Descent moves x1 left and x2 right; the height only matters once there is a width.
    assert x1 > 0 > x2 and y1 == y2 == 0


def test_agrees_with_torchvision_and_fvcore_on_ordered_boxes(impl):
    peers = [pytest.importorskip("torchvision.ops").generalized_box_iou_loss]
    peers.append(pytest.importorskip("fvcore.nn").giou_loss)
    # On the grid many coordinates are equal, and some boxes have no area.
    for seed, grid in ((0, None), (1, 2.0)):
        pred, target = random_pairs(400, seed, torch.float64, grid)
        pred, target = pred.to(impl.device).requires_grad_(), target.to(impl.device)
        loss = impl.giou_loss(pred, target)
        grad = gradient(loss, pred)
        for peer in peers:
            expected = peer(pred, target, reduction="sum")
            torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
            # At a kink (touching borders, a side of 0) the peers may take another subgradient.
            theirs = gradient(expected, pred)
            smooth = (pred[:, :2] < pred[:, 2:]).all(dim=1)
            for first, last in ((pred, target), (target, pred)):
                smooth &= (first[:, 2:] != last[:, :2]).all(dim=1)
            assert smooth.sum() > 150
            torch.testing.assert_close(grad[smooth], theirs[smooth], rtol=1e-11, atol=1e-13)


def test_swapped_corners_give_the_same_box(impl):
    pred, target = random_pairs(300, 5, torch.float64)
    crossed = random_pairs(300, 5, torch.float64, crossed=0.5)[0]
    assert (pred != crossed).any()
    loss = impl.giou_loss(pred.to(impl.device), target.to(impl.device))
    assert torch.equal(loss, impl.giou_loss(crossed.to(impl.device), target.to(impl.device)))
    turned = target[:, [2, 1, 0, 3]].to(impl.device)
    assert torch.equal(loss, impl.giou_loss(pred.to(impl.device), turned))


def test_gradcheck(impl):
    pred, target = random_pairs(40, 6, torch.float64, crossed=0.3)
    mask = torch.arange(40, device=impl.device) % 3 > 0
    pred, target = pred.to(impl.device).requires_grad_(), target.to(impl.device)
    torch.autograd.gradcheck(lambda boxes: impl.giou_loss(boxes, target, mask), pred)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 3e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("masked", [False, True])
def test_kernel_agrees_with_the_reference(native_device, masked, dtype, tolerance):
    for count, grid in ((1, None), (5000, None), (5000, 2.0)):
        pred, target = random_pairs(count, 7, dtype, grid, crossed=0.2)
        pred, target = pred.to(native_device).requires_grad_(), target.to(native_device)
        mask = torch.arange(count, device=native_device) % 7 > 2 if masked else None
        loss = ops.giou_loss(pred, target, mask)
        expected = reference.giou_loss(pred, target, mask)
        torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
        three = torch.tensor(3.0, dtype=dtype, device=native_device)
        formula = reference.giou_loss_backward(three, pred.detach(), target, mask)
        torch.testing.assert_close(
            gradient(3 * loss, pred), formula, rtol=tolerance, atol=tolerance
        )


def test_backward_formula_is_the_gradient_of_the_reference():
    pred, target = random_pairs(2000, 8, torch.float64, crossed=0.3)
    loss = reference.giou_loss(pred.requires_grad_(), target)
    one = torch.ones((), dtype=torch.float64)
    formula = reference.giou_loss_backward(one, pred.detach(), target, None)
    torch.testing.assert_close(formula, gradient(loss, pred))


def test_always_finite_and_within_bounds(native_device):
    boxes = odd_boxes().to(native_device)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        other = boxes[torch.randperm(len(boxes), generator=generator).to(native_device)]
        for target in (other, boxes):
            pred = boxes.clone().requires_grad_()
            loss = ops.giou_loss(pred, target)
            assert 0 <= loss.item() <= 2 * len(boxes) and gradient(loss, pred).isfinite().all()
    one = boxes.new_ones(())
    assert reference.giou_loss_backward(one, boxes, other, None).isfinite().all()


def test_pairs_outside_the_mask_contribute_nothing_even_if_not_finite(impl):
    pred, target = (boxes.to(impl.device) for boxes in random_pairs(300, 9))
    mask = torch.arange(300, device=impl.device) % 5 > 1
    clean = pred.clone().requires_grad_()
    expected = impl.giou_loss(clean, target, mask)
    pred, target = pred.clone(), target.clone()
    pred[~mask], target[~mask] = NAN, INF
    pred.requires_grad_()
    loss = impl.giou_loss(pred, target, mask)
    grad = gradient(loss, pred)
    assert torch.equal(loss, expected) and not grad[~mask].any()
    assert torch.equal(grad[mask], gradient(expected, clean)[mask])
    nothing = impl.giou_loss(pred, target, torch.zeros_like(mask))
    assert nothing.item() == 0 and not gradient(nothing, pred).any()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("coordinate", range(4))
def test_what_is_not_finite_shows_in_the_loss(native_device, coordinate, value):
    for which in (0, 1):
        pair = [torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3]]) for _ in range(2)]
        pair[which][0, coordinate] = value
        pred, target = pair[0].to(native_device).requires_grad_(), pair[1].to(native_device)
        loss = ops.giou_loss(pred, target)
        assert loss.isnan()
        assert gradient(loss, pred).isnan().all(dim=1).tolist() == [True, False]
        assert gradient(ops.giou_loss(pred, target), pred)[1].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4)])
def test_empty(impl, shape):
    pred = torch.empty(shape, device=impl.device, requires_grad=True)
    loss = impl.giou_loss(pred, pred.detach(), torch.ones(shape[:-1], device=impl.device) > 0)
    assert loss.item() == 0 and gradient(loss, pred).shape == shape


def test_leading_dimensions_and_strides(impl):
    pred, target = (boxes.to(impl.device) for boxes in random_pairs(60, 10))
    mask = torch.arange(60, device=impl.device) % 2 > 0
    pred.requires_grad_()
    expected = impl.giou_loss(pred, target, mask)
    shaped = pred.detach().view(3, 20, 4).permute(2, 0, 1).contiguous().requires_grad_()
    wide = torch.cat((target, target), dim=1)[:, :4].view(3, 20, 4)
    loss = impl.giou_loss(shaped.permute(1, 2, 0), wide, mask.view(3, 20))
    assert not wide.is_contiguous() and torch.equal(loss, expected)
    grad = gradient(loss, shaped).permute(1, 2, 0).reshape(60, 4)
    assert torch.equal(grad, gradient(expected, pred))


@pytest.mark.parametrize("loss", [ops.giou_loss, ops.balanced_l1_loss])
def test_where_no_gradient_is_recorded_the_target_may_require_one(loss):
    pred, target = (
        torch.tensor([[0.0, 0, 2, 2]]),
        torch.tensor([[1.0, 0, 3, 2]], requires_grad=True),
    )
    with torch.no_grad():
        assert loss(pred, target) == loss(pred, target.detach()) > 0


GOOD, MASK = torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
BAD_ARGUMENTS = [
    ((GOOD.long(), GOOD), TypeError, "pred must be a floating-point tensor, got torch.int64"),
    ((GOOD, [[0, 0, 1, 1]]), TypeError, "target must be a floating-point tensor, got list"),
    ((GOOD, GOOD, MASK.int()), TypeError, "mask must be a tensor of torch.bool, got torch.int32"),
    ((GOOD[..., :3], GOOD[..., :3]), ValueError, r"pred must have shape \(..., 4\), got"),
    ((GOOD, GOOD[:1]), ValueError, r"target must have the shape of pred, \(2, 3, 4\), got"),
    ((GOOD, GOOD, MASK[0]), ValueError, r"mask must have the shape .* \(2, 3\), got \(3,\)"),
    ((GOOD, GOOD, MASK.T), ValueError, r"mask must have the shape .* \(2, 3\), got \(3, 2\)"),
    ((GOOD, GOOD.to("meta")), ValueError, "target is on meta, but pred is on cpu"),
    ((GOOD, GOOD, MASK.to("meta")), ValueError, "mask is on meta, but pred is on cpu"),
    ((GOOD, GOOD.clone().requires_grad_()), ValueError, "no gradient is computed for target; pa"),
]


@pytest.mark.parametrize("arguments, error, message", BAD_ARGUMENTS)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match="giou_loss: " + message):
        ops.giou_loss(*arguments)


@pytest.mark.parametrize(
    "pred, target, mask, message",
    [
        (GOOD.half(), GOOD.half(), None, "pred must be float32 or float64"),
        (GOOD, GOOD.double(), None, "target must have the dtype of pred"),
        (GOOD[..., :3], GOOD[..., :3], None, "pred must have shape"),
        (GOOD, GOOD[:1], None, "target must have the shape of pred"),
        (GOOD, GOOD, MASK.int(), "mask must be bool"),
        (GOOD, GOOD, MASK[:1], "mask must have the shape of pred without"),
    ],
)
def test_kernels_reject_what_the_wrapper_rejects(native_device, pred, target, mask, message):
    mask = None if mask is None else mask.to(native_device)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.resobj_d2.giou_loss(pred.to(native_device), target.to(native_device), mask)


def test_identical_boxes_have_a_loss_of_exactly_zero(impl):
    corners = torch.rand(5000, 2, generator=torch.Generator().manual_seed(0)) * 800
    boxes = torch.cat((corners, 2 * corners + 1), dim=1).to(impl.device)
    assert impl.giou_loss(boxes, boxes).item() == 0
