"""Quality focal loss and varifocal loss, one anchor and class at a time."""

import math

import pytest
import torch

from resobj_d2.losses import QualityFocalLoss, VarifocalLoss

K = 3
LABELS = torch.tensor([[0, 2, K, -1, 1]])
MASK = torch.tensor([[True, True, True, True, False]])
QUALITY = torch.tensor([[0.7, 0.0, 0.9, 0.5, 0.5]])


def bce(p, y):
    return -y * math.log(p) - (1 - y) * math.log(1 - p)


def quality_focal(p, y):
    return abs(y - p) ** 2 * bce(p, y)


def varifocal(p, y):
    return y * bce(p, y) if y > 0 else -0.75 * p**2 * math.log(1 - p)


@pytest.mark.parametrize(
    "loss, term", [(QualityFocalLoss(), quality_focal), (VarifocalLoss(), varifocal)]
)
def test_by_hand(loss, term):
    logits = torch.randn(1, 5, K, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for row in range(3):  # the others are ignored or outside the mask
        for k in range(K):
            y = QUALITY[0, row].item() if LABELS[0, row] == k else 0.0
            expected += term(torch.sigmoid(logits[0, row, k]).item(), y)
    logits[0, 3:] = math.nan
    logits.requires_grad_()
    total = loss(logits, LABELS, MASK, QUALITY)
    assert total.item() == pytest.approx(expected, rel=1e-5)
    total.backward()
    assert torch.isfinite(logits.grad).all() and not logits.grad[0, 3:].any()
    assert logits.grad[0, :3].any()


def test_a_score_equal_to_the_quality_has_no_quality_focal_loss():
    logits = torch.full((1, 1, K), -40.0)
    logits[0, 0, 1] = math.log(0.6 / 0.4)
    value = QualityFocalLoss()(
        logits, torch.tensor([[1]]), torch.tensor([[True]]), torch.tensor([[0.6]])
    )
    assert value.item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: QualityFocalLoss(beta=0.5), "QFL_BETA"),
        (lambda: VarifocalLoss(alpha=0.0), "VARIFOCAL_ALPHA"),
        (lambda: VarifocalLoss(gamma=0.5), "VARIFOCAL_GAMMA at least 1"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("loss", [QualityFocalLoss(), VarifocalLoss()])
def test_a_quality_that_has_diverged_shows_in_the_loss(loss):
    logits = torch.zeros(1, 5, K)
    assert loss(logits, LABELS, MASK, QUALITY.clone().fill_(math.nan)).isnan()


def test_without_a_quality_the_target_is_one():
    logits = torch.randn(1, 5, K, generator=torch.Generator().manual_seed(1))
    for loss in (QualityFocalLoss(), VarifocalLoss()):
        ones = loss(logits, LABELS, MASK, torch.ones(1, 5))
        assert loss(logits, LABELS, MASK) == ones > 0


@pytest.mark.parametrize("loss", [QualityFocalLoss(), VarifocalLoss()])
def test_anchors_are_ranked_as_if_their_quality_were_one(loss):
    logits = torch.randn(1, 5, K, generator=torch.Generator().manual_seed(2))
    found = loss.per_anchor(logits, LABELS)
    for row in (0, 1, 2, 4):
        alone = torch.zeros(1, 5, dtype=torch.bool)
        alone[0, row] = True
        expected = loss(logits, LABELS, alone, torch.ones(1, 5))
        assert found[0, row].item() == pytest.approx(expected.item(), rel=1e-5)
