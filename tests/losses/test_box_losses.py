"""Box losses by hand; the operators behind them are tested separately."""

import copy
import math

import pytest
import torch
from fvcore.nn import giou_loss

from resobj_d2.losses import (
    BOX_LOSS_REGISTRY,
    BalancedL1Loss,
    CIoULoss,
    DIoULoss,
    GIoULoss,
    IoULoss,
    L1Loss,
    NegativeLogIoULoss,
)

# Intersection 2x4, areas 16 and 16: IoU 8 / 24 = 1/3; enclosing box 6x4 has no empty corner.
PRED = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
TARGET = torch.tensor([[2.0, 0.0, 6.0, 4.0]])
APART = torch.tensor([[8.0, 0.0, 12.0, 4.0]])
YES = torch.tensor([True])
# CIoU's term for a line and a square that do not overlap: v = 4 / pi^2 (pi / 4)^2 = 1 / 4.
LINE = 0.25**2 / 1.25


@pytest.mark.parametrize(
    "loss, expected, apart",
    [
        (IoULoss(), 2 / 3, 1.0),
        (NegativeLogIoULoss(), math.log(3), -math.log(1e-6)),
        (GIoULoss(), 2 / 3, 1 + 4 * 4 / (12 * 4)),
        # The centres are 2 and 8 apart, the hulls 6x4 and 12x4; all boxes are square.
        (DIoULoss(), 2 / 3 + 4 / 52, 1 + 64 / 160),
        (CIoULoss(), 2 / 3 + 4 / 52, 1 + 64 / 160),
    ],
)
def test_overlap_losses_by_hand(loss, expected, apart):
    assert loss(PRED, TARGET, YES).item() == pytest.approx(expected, rel=1e-5)
    assert loss(PRED, APART, YES).item() == pytest.approx(apart, rel=1e-5)
    assert loss(PRED, PRED, YES).item() == pytest.approx(0.0, abs=1e-6)
    assert loss.compares == "boxes"


def test_gradient_of_log_iou_by_hand():
    """The intersection is 4 (x2 - 2), the union 16 + 4 (x2 - x1) minus that."""
    pred = PRED.clone().requires_grad_()
    NegativeLogIoULoss()(pred, TARGET, YES).backward()
    # dI = 4, dU = 4 - 4 = 0 at I = 8
    assert pred.grad[0, 2].item() == pytest.approx(-4 / 8)
    # x1: I is constant; U shrinks by 4 per pixel, at U = 24
    assert pred.grad[0, 0].item() == pytest.approx(-4 / 24)


@pytest.mark.parametrize(
    "loss", [IoULoss(), NegativeLogIoULoss(), GIoULoss(), DIoULoss(), CIoULoss()]
)
def test_swapped_corners_are_sorted(loss):
    crossed = PRED[:, [2, 3, 0, 1]].clone().requires_grad_()
    value = loss(crossed, TARGET, YES)
    torch.testing.assert_close(value, loss(PRED, TARGET, YES))
    value.backward()
    assert torch.isfinite(crossed.grad).all()


def test_giou_agrees_with_fvcore():
    torch.manual_seed(0)
    corner, size = torch.rand(2, 40, 2) * 50, torch.rand(2, 40, 2) * 30 + 1
    boxes = torch.cat((corner, corner + size), dim=-1)
    ours = GIoULoss()(boxes[0], boxes[1], torch.ones(40, dtype=torch.bool))
    torch.testing.assert_close(ours, giou_loss(boxes[0], boxes[1], reduction="sum"))


def test_ciou_by_hand():
    """A box of 4x2 in one of 4x4: IoU 1/2, the same corner, centres 1 apart."""
    pred = torch.tensor([[2.0, 0.0, 6.0, 2.0]])
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    distance = 0.5 + 1 / 32
    assert DIoULoss()(pred, TARGET, YES).item() == pytest.approx(distance, rel=1e-5)
    expected = distance + v**2 / (0.5 + v)
    assert CIoULoss()(pred, TARGET, YES).item() == pytest.approx(expected, rel=1e-5)


def test_l1_by_hand():
    loss = L1Loss()
    assert loss(torch.tensor([[1.0, -2.0, 0.0, 0.5]]), torch.zeros(1, 4), YES).item() == 3.5
    assert loss.compares == "deltas"


def test_balanced_l1_by_hand():
    """alpha 0.5, gamma 1.5: b = e^3 - 1, inside alpha/b (b x + 1) ln(b x + 1) - alpha x."""
    b = math.e**3 - 1
    inside = 0.5 / b * (b * 0.5 + 1) * math.log(b * 0.5 + 1) - 0.25
    outside = 1.5 * 2 + 1.5 / b - 0.5
    pred = torch.tensor([[0.5, -2.0, 0.0, 0.0]])
    value = BalancedL1Loss()(pred, torch.zeros(1, 4), YES)
    assert value.item() == pytest.approx(inside + outside, rel=1e-5)
    stretched = BalancedL1Loss(beta=0.1)(0.1 * pred, torch.zeros(1, 4), YES)
    assert stretched.item() == pytest.approx(0.1 * (inside + outside), rel=1e-5)


@pytest.mark.parametrize("alpha, gamma", [(1.0, 1.5), (0.5, 1.0)])
def test_alpha_and_gamma_of_balanced_l1_by_hand(alpha, gamma):
    b = math.expm1(gamma / alpha)
    inside = alpha / b * (b * 0.5 + 1) * math.log(b * 0.5 + 1) - alpha * 0.5
    outside = gamma * 2 + gamma / b - alpha
    value = BalancedL1Loss(alpha=alpha, gamma=gamma)(
        torch.tensor([[0.5, -2.0, 0.0, 0.0]]), torch.zeros(1, 4), YES
    )
    assert value.item() == pytest.approx(inside + outside, rel=1e-5)


def test_mmdet_form_of_balanced_l1_by_hand():
    """mmdetection's formula with beta .11, which differs from ours: its slope jumps at 0."""
    b, beta = math.e**3 - 1, 0.11
    inside = 0.5 / b * (b * 0.05 + 1) * math.log(b * 0.05 / beta + 1) - 0.5 * 0.05
    outside = 1.5 * 0.2 + 1.5 / b - 0.5 * beta
    loss = BalancedL1Loss(beta=beta, mmdet_form=True)
    pred = torch.tensor([[0.05, -0.2, 1e-6, 0.0]], requires_grad=True)
    value = loss(pred, torch.zeros(1, 4), YES)
    # The third element's loss equals its slope: alpha (1 - beta) / beta.
    jump = 0.5 * (1 - beta) / beta
    assert value.item() == pytest.approx(inside + outside + 1e-6 * jump, rel=1e-5)
    value.backward()
    assert pred.grad[0, 1].item() == -1.5
    assert pred.grad[0, 2].item() == pytest.approx(jump, rel=1e-3)
    assert pred.grad[0, 3].item() == 0
    torch.testing.assert_close(
        BalancedL1Loss(mmdet_form=True)(pred, torch.ones(1, 4), YES),
        BalancedL1Loss()(pred, torch.ones(1, 4), YES),
    )


@pytest.mark.parametrize(
    "loss, expected, apart",
    [
        (IoULoss(), 1.0, 1.0),
        (NegativeLogIoULoss(), -math.log(1e-6), -math.log(1e-6)),
        # Within the target: hull = union, GIoU 0. Apart: hull 12x4, union 16.
        (GIoULoss(), 1.0, 1 + 32 / 48),
        # The centres are 1 and 10 apart.
        (DIoULoss(), 1 + 1 / 32, 1 + 100 / 160),
        (CIoULoss(), 1 + 1 / 32 + LINE, 1 + 100 / 160 + LINE),
    ],
)
def test_a_box_without_area_has_a_loss_and_a_finite_gradient(loss, expected, apart):
    for corner, value in ((3.0, expected), (12.0, apart)):
        pred = torch.tensor([[corner, 0.0, corner, 4.0]], requires_grad=True)
        target = PRED if corner > 6 else TARGET
        found = loss(pred, target, YES)
        assert found.item() == pytest.approx(value, rel=1e-5)
        found.backward()
        assert torch.isfinite(pred.grad).all()
    both = loss(torch.zeros(1, 4), torch.zeros(1, 4), YES)
    assert torch.isfinite(both)


@pytest.mark.parametrize("name", sorted(name for name, _ in BOX_LOSS_REGISTRY))
def test_pairs_outside_the_mask_contribute_nothing_even_if_not_finite(name):
    loss = BOX_LOSS_REGISTRY.get(name)()
    pred = torch.cat((PRED, torch.full((1, 4), torch.nan), torch.full((1, 4), torch.inf)))
    pred = pred.repeat(2, 1, 1).requires_grad_()
    target = torch.cat((TARGET, torch.full((1, 4), torch.nan), PRED)).repeat(2, 1, 1)
    mask = torch.tensor([[True, False, False], [False, False, False]])
    same_state = copy.deepcopy(loss)  # GHM's losses are stateful
    value = loss(pred, target, mask)
    torch.testing.assert_close(value, same_state(PRED, TARGET, YES))
    value.backward()
    assert pred.grad[0, 0].abs().sum() > 0
    assert pred.grad[0, 1:].count_nonzero() == 0 and pred.grad[1].count_nonzero() == 0
    # Nothing to train on: a zero that still has a graph, as DistributedDataParallel needs.
    nothing = loss(pred, target, torch.zeros_like(mask))
    assert nothing.item() == 0 and nothing.requires_grad


@pytest.mark.parametrize("broken", [0, 1], ids=["prediction", "target"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", sorted(name for name, _ in BOX_LOSS_REGISTRY))
def test_a_non_finite_pair_inside_the_mask_shows_in_the_loss(name, value, broken):
    loss = BOX_LOSS_REGISTRY.get(name)()
    boxes = torch.stack((PRED, TARGET)).repeat(1, 2, 1)
    boxes[broken, 1, 2] = value
    assert not torch.isfinite(loss(*boxes, torch.ones(2, dtype=torch.bool)))


@pytest.mark.parametrize("name", sorted(name for name, _ in BOX_LOSS_REGISTRY))
def test_whatever_the_precision_of_the_prediction_the_sum_is_float32(name):
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(50, 2, generator=g)
    target = torch.cat((corner, corner + 1), dim=1)
    mask = torch.rand(50, generator=g) < 0.8
    for dtype in (torch.bfloat16, torch.float64):
        pred = (target + 0.2 * torch.rand(50, 4, generator=g)).to(dtype)
        value, exact = (
            BOX_LOSS_REGISTRY.get(name)()(x, target, mask) for x in (pred, pred.float())
        )
        assert value.dtype == torch.float32 and value == exact > 0


@pytest.mark.parametrize("key", ["alpha", "gamma", "beta"])
def test_balanced_l1_refuses_non_positive_options(key):
    with pytest.raises(ValueError, match=f"BALANCED_{key.upper()}"):
        BalancedL1Loss(**{key: 0.0})
