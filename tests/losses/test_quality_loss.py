"""Losses between a predicted quality and its target IoU, by hand."""

import math

import pytest
import torch

from resobj_d2.losses import QualityLoss

# sigmoid(h) = 0.8, 0.5, 0.25; the third is background, the fourth ignored.
LOGITS = [math.log(4.0), 0.0, -math.log(3.0), 5.0]
TARGETS = [0.6, 0.9, 0.0, 0.0]
FOREGROUND = torch.tensor([True, True, False, False])
BACKGROUND = torch.tensor([False, False, True, False])


def bce(p, y):
    return -(y * math.log(p) + (1 - y) * math.log(1 - p))


def run(**options):
    logits = torch.tensor(LOGITS, requires_grad=True)
    targets = torch.tensor(TARGETS, requires_grad=True)
    loss = QualityLoss(**options)(logits, targets, FOREGROUND, BACKGROUND)
    loss.backward()
    return loss.item(), logits.grad, targets.grad


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, bce(0.8, 0.6) + bce(0.5, 0.9)),
        (
            {"kind": "ce_w", "negative_weight": 1e-3},
            bce(0.8, 0.6) + bce(0.5, 0.9) + 1e-3 * bce(0.25, 0.0),
        ),
        ({"kind": "l1"}, 0.2 + 0.4),
        ({"kind": "l2"}, 0.04 + 0.16),
        # |d| = .2 and .4 with the transition at .3: quadratic, then linear
        ({"kind": "smooth_l1", "beta": 0.3}, 0.5 * 0.04 / 0.3 + (0.4 - 0.15)),
        ({"kind": "gfocal"}, 0.04 * bce(0.8, 0.6) + 0.16 * bce(0.5, 0.9)),
        ({"kind": "gfocal", "gamma": 1.0}, 0.2 * bce(0.8, 0.6) + 0.4 * bce(0.5, 0.9)),
    ],
)
def test_sum_by_hand(options, expected):
    value, gradient, _ = run(**options)
    assert value == pytest.approx(expected, rel=1e-5)
    assert gradient[3] == 0
    assert (gradient[2] != 0) == (options.get("kind") == "ce_w")


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [0.8 - 0.6, 0.5 - 0.9]),  # sigma - y
        ({"kind": "l1"}, [0.8 * 0.2, -0.25]),  # sign(d) sigma (1 - sigma)
        ({"kind": "l2"}, [2 * 0.2 * 0.16, 2 * -0.4 * 0.25]),
    ],
)
def test_gradient_of_the_logits_by_hand(options, expected):
    assert run(**options)[1][:2].tolist() == pytest.approx(expected, rel=1e-5)


def test_gradient_of_the_target_is_minus_the_logit():
    """This gradient moves the boxes if the target is not detached (RetinaNet-Conf, Eq. 8)."""
    assert run()[2].tolist() == pytest.approx([-math.log(4.0), 0.0, 0.0, 0.0])


def test_background_gradient_of_ce_w():
    gradient = run(kind="ce_w", negative_weight=0.01)[1]
    assert gradient[2].item() == pytest.approx(0.01 * 0.25)


@pytest.mark.parametrize("kind", ["ce", "ce_w", "l1", "smooth_l1", "l2", "gfocal"])
def test_extreme_and_excluded_values(kind):
    """Saturated logits and perfect predictions are finite; NaN outside the masks has no effect."""
    logits = torch.tensor([80.0, -80.0, 0.0, math.nan], requires_grad=True)
    targets = torch.tensor([1.0, 1.0, 0.5, math.nan])
    foreground = torch.tensor([True, True, True, False])
    loss = QualityLoss(kind=kind)(logits, targets, foreground, torch.zeros(4, dtype=torch.bool))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
    nothing = torch.zeros(4, dtype=torch.bool)
    empty = QualityLoss(kind=kind)(logits, targets, nothing, nothing)
    assert empty.item() == 0 and empty.requires_grad


def test_half_precision_sums_in_float32():
    logits = torch.full((4096,), 1.0, dtype=torch.bfloat16)
    every = torch.ones(4096, dtype=torch.bool)
    loss = QualityLoss()(logits, torch.zeros(4096), every, ~every)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(4096 * math.log1p(math.e), rel=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "iou"}, "QUALITY.LOSS.*gfocal.*'iou'"),
        ({"kind": "ce_w", "negative_weight": 0.0}, "NEGATIVE_WEIGHT"),
        ({"kind": "gfocal", "gamma": 0.5}, "GAMMA"),
        ({"kind": "smooth_l1", "beta": 0.0}, "BETA"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        QualityLoss(**options)
