"""Softmax cross entropy with background as the last class."""

import math

import pytest
import torch
from torch.nn import functional as F

from resobj_d2.losses import SoftmaxCE
from resobj_d2.structures import LevelMaps


def test_by_hand():
    # Two classes and background, scores e^logit = 1, 2, 5 of 8: p = 1/8, 1/4, 5/8.
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log().repeat(3, 1)
    labels = torch.tensor([0, 1, 2])
    loss = SoftmaxCE()
    torch.testing.assert_close(
        loss.per_anchor(logits, labels), torch.tensor([8.0, 4.0, 8 / 5]).log()
    )
    total = loss(logits, labels, torch.tensor([True, False, True]))
    assert total.item() == pytest.approx(math.log(8) + math.log(8 / 5))


def test_equals_torchs_cross_entropy():
    torch.manual_seed(0)
    logits = torch.randn(2, 30, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(-1, 5, (2, 30))
    found = SoftmaxCE()(logits, labels, torch.ones_like(labels, dtype=torch.bool))
    expected = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="sum"
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    assert found.dtype == torch.float32
    for ours, theirs in zip(
        torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_anchors_outside_the_mask_contribute_nothing_even_if_not_finite():
    logits = torch.tensor([[0.3, -0.2], [float("nan"), float("inf")]], requires_grad=True)
    loss = SoftmaxCE()(logits, torch.tensor([1, 0]), torch.tensor([True, False]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.equal(logits.grad[1], torch.zeros(2))
    assert (logits.grad[0] != 0).all()


def test_nan_inside_the_mask_shows_in_the_loss():
    logits = torch.full((1, 3), float("nan"))
    assert SoftmaxCE()(logits, torch.tensor([0]), torch.tensor([True])).isnan()


def test_without_anchors_the_loss_is_a_differentiable_zero():
    logits = torch.zeros(1, 4, 3, requires_grad=True)
    loss = SoftmaxCE()(logits, torch.full((1, 4), -1), torch.ones(1, 4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(1, 4, 3))


def test_sigmoid_of_class_logits_is_the_softmax():
    torch.manual_seed(0)
    # Two levels; two anchors of three logits each: two classes and the background.
    maps = LevelMaps([3 * torch.randn(2, 6, 4, 3), 3 * torch.randn(2, 6, 2, 1)], 3)
    found = SoftmaxCE.sigmoid_logits(maps)
    assert [tuple(x.shape) for x in found.levels] == [(2, 4, 4, 3), (2, 4, 2, 1)]
    expected = F.softmax(maps.flatten(), dim=-1)[..., :2]
    torch.testing.assert_close(torch.sigmoid(found.flatten()), expected)


def test_class_logits_are_finite_at_saturated_scores():
    # One anchor in each of two images.
    logits = torch.tensor([[200.0, -200.0, 0.0], [-3e4, -3e4, 3e4]]).view(2, 3, 1, 1)
    (found,) = SoftmaxCE.sigmoid_logits(LevelMaps([logits], 3)).levels
    assert torch.isfinite(found).all()
    assert torch.sigmoid(found[0, 0]) > 0.999999
    assert torch.sigmoid(found[0, 1]) == 0


def test_class_logits_of_half_precision_are_float32():
    maps = LevelMaps([torch.zeros(1, 3, 1, 1, dtype=torch.bfloat16)], 3)
    (found,) = SoftmaxCE.sigmoid_logits(maps).levels
    assert found.dtype == torch.float32
    torch.testing.assert_close(torch.sigmoid(found), torch.full((1, 2, 1, 1), 1 / 3))
