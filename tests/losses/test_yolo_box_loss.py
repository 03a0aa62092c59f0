"""YOLOv3's box loss: the gradients specified by Darknet."""

import math

import pytest
import torch

from resobj_d2.losses import YOLOBoxLoss


def test_gradient_is_darknets():
    g = torch.Generator().manual_seed(0)
    pred = torch.randn(2, 5, 4, generator=g, requires_grad=True)
    target = torch.randn(2, 5, 4, generator=g)
    mask = torch.rand(2, 5, generator=g) < 0.6
    weights = 1 + torch.rand(2, 5, generator=g)
    YOLOBoxLoss()(pred, target, mask, weights).backward()
    place = torch.sigmoid(pred[..., :2]) - torch.sigmoid(target[..., :2])
    expected = torch.cat((place, pred[..., 2:] - target[..., 2:]), dim=-1) * weights[..., None]
    torch.testing.assert_close(pred.grad, (expected * mask[..., None]).detach())
    assert mask.any() and not mask.all()


def test_value_by_hand():
    # Sigmoids of 3/4 for a target of 1/2: -(ln 3/4 + ln 1/4) / 2. Sizes differ by 2 and 0.
    pred = torch.tensor([[math.log(3), 0.0, 2.0, 1.0]])
    target = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    value = YOLOBoxLoss()(pred, target, torch.tensor([True]), torch.tensor([1.5]))
    expected = 1.5 * (-(math.log(0.75) + math.log(0.25)) / 2 + math.log(2) + 2.0)
    assert value.item() == pytest.approx(expected)
    plain = YOLOBoxLoss()(pred, target, torch.tensor([True]))
    assert plain.item() == pytest.approx(expected / 1.5)


def test_rows_outside_the_mask_have_no_effect():
    pred = torch.tensor([[float("nan")] * 4, [0.0] * 4], requires_grad=True)
    target = torch.tensor([[float("inf")] * 4, [0.0] * 4])
    mask = torch.tensor([False, True])
    value = YOLOBoxLoss()(pred, target, mask, torch.tensor([float("nan"), 1.0]))
    value.backward()
    assert value.item() == pytest.approx(2 * math.log(2))
    assert pred.grad.tolist() == [[0.0] * 4, [0.0] * 4]
    nothing = YOLOBoxLoss()(pred, target, torch.zeros(2, dtype=torch.bool))
    assert nothing.item() == 0 and nothing.requires_grad


def test_half_precision_is_summed_in_float32():
    pred = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    target = torch.zeros(7, 4)
    value = YOLOBoxLoss()(pred, target, torch.ones(7, dtype=torch.bool))
    exact = YOLOBoxLoss()(pred.float(), target, torch.ones(7, dtype=torch.bool))
    assert value.dtype == torch.float32
    assert value.item() == exact.item()
