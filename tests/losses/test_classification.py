import inspect
import math

import pytest
import torch
from fvcore.nn import sigmoid_focal_loss as fvcore_focal_loss

from resobj_d2 import ops
from resobj_d2.losses import (
    CLS_LOSS_REGISTRY,
    SigmoidCE,
    SigmoidFocalLoss,
    sigmoid_focal_loss,
)


def test_focal_loss_by_hand():
    # One anchor of class 0 out of two classes, logits 0 and ln 3: p = 1/2 and 3/4.
    logits = torch.tensor([[0.0, math.log(3.0)]])
    loss = sigmoid_focal_loss(
        logits, torch.tensor([0]), torch.tensor([True]), alpha=0.25, gamma=2.0
    )
    positive = 0.25 * 0.5**2 * math.log(2)
    negative = 0.75 * 0.75**2 * math.log(4)
    assert loss.item() == pytest.approx(positive + negative, rel=1e-6)


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (0.5, 0.0), (-1.0, 0.0), (0.3, 1.5)])
def test_equals_fvcore_with_one_hot_targets(alpha, gamma):
    torch.manual_seed(0)
    logits = torch.randn(2, 50, 4, requires_grad=True)
    labels = torch.randint(-1, 5, (2, 50))
    mask = labels >= 0
    ours = sigmoid_focal_loss(logits, labels, mask, alpha=alpha, gamma=gamma)
    (gradient,) = torch.autograd.grad(ours, logits)

    one_hot = torch.nn.functional.one_hot(labels[mask], 5)[:, :4].float()
    theirs = fvcore_focal_loss(logits[mask], one_hot, alpha, gamma, reduction="sum")
    (expected,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient, expected)


def test_arguments_come_in_the_order_of_the_operator():
    assert list(inspect.signature(sigmoid_focal_loss).parameters) == list(
        inspect.signature(ops.sigmoid_focal_loss).parameters
    )
    logits, labels = torch.randn(3, 4), torch.tensor([0, 4, 2])
    everywhere = torch.ones(3, dtype=torch.bool)
    assert torch.equal(
        sigmoid_focal_loss(logits, labels), sigmoid_focal_loss(logits, labels, everywhere)
    )


def test_ce_baseline_is_half_of_binary_cross_entropy():
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 9, 3), torch.randint(0, 4, (1, 9))
    mask = torch.ones(1, 9, dtype=torch.bool)
    half = SigmoidFocalLoss(alpha=0.5, gamma=0.0)(logits, labels, mask)
    torch.testing.assert_close(2 * half, SigmoidCE()(logits, labels, mask))


def test_anchors_outside_the_mask_contribute_nothing_even_if_not_finite():
    logits = torch.tensor([[0.3, -0.2], [float("nan"), float("inf")]], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([1, 0]), torch.tensor([True, False]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.equal(logits.grad[1], torch.zeros(2))
    assert (logits.grad[0] != 0).all()


@pytest.mark.parametrize("gamma", [0.2, 0.5, 1.0, 2.0])
def test_gradient_is_finite_at_saturated_logits(gamma):
    logits = torch.tensor([[-200.0, 200.0, 0.3]], requires_grad=True)
    for label in (0, 1, 3):
        loss = sigmoid_focal_loss(logits, torch.tensor([label]), torch.tensor([True]), gamma=gamma)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()


def test_arithmetic_is_float32():
    logits = torch.full((1, 1000, 1), -9.0, dtype=torch.bfloat16)
    labels = torch.ones(1, 1000, dtype=torch.long)
    loss = SigmoidCE()(logits, labels, labels == 1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1000 * math.log1p(math.exp(-9.0)), rel=1e-5)


@pytest.mark.parametrize("name", sorted(name for name, _ in CLS_LOSS_REGISTRY))
def test_whatever_the_precision_of_the_logits_the_sum_is_float32(name):
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float64):
        logits, labels = 3 * torch.randn(2, 40, 4).to(dtype), torch.randint(-1, 4, (2, 40))
        mask = torch.rand(2, 40) < 0.8
        value, exact = (
            CLS_LOSS_REGISTRY.get(name)()(x, labels, mask) for x in (logits, logits.float())
        )
        assert value.dtype == torch.float32 and value == exact > 0


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.25, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_losses_of_the_anchors_add_up_to_the_sum(alpha, gamma):
    torch.manual_seed(0)
    loss = SigmoidFocalLoss(alpha=alpha, gamma=gamma)
    logits, labels = (3 * torch.randn(2, 30, 3)).bfloat16(), torch.randint(0, 4, (2, 30))
    each = loss.per_anchor(logits, labels)
    assert each.dtype == torch.float32
    for mask in (torch.rand(2, 30) < 0.5, torch.ones(2, 30, dtype=torch.bool)):
        torch.testing.assert_close(each[mask].sum(), loss(logits, labels, mask))


@pytest.mark.parametrize("options", [{"gamma": -0.1}, {"alpha": 1.01}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="FOCAL_"):
        SigmoidFocalLoss(**options)
