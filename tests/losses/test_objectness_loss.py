import math

import pytest
import torch

from resobj_d2.losses import ResidualObjectnessLoss


def bce(logit, label):
    return math.log1p(math.exp(-logit)) if label else math.log1p(math.exp(logit))


def test_algorithm_1_by_hand():
    """One image, four anchors: two foreground (the lower at 0), one hard and one easy negative."""
    logits = torch.tensor([[2.0, 0.0, 1.0, -3.0]])
    residuals = torch.tensor([[[0.5, 1.0, -2.0, 4.0]]])
    labels = torch.tensor([[1, 1, 0, 0]], dtype=torch.int8)
    loss = ResidualObjectnessLoss(weight=2.0, residual_weight=3.0)
    losses, statistics = loss(
        logits, residuals, labels, anchors_per_level=[4], normalizer=torch.tensor(10.0)
    )
    base = bce(2, 1) + bce(0, 1) + bce(1, 0) + bce(-3, 0)
    # The minimum positive score is 0, so the anchor at -3 is not selected, whatever its residual.
    first = bce(2.5, 1) + bce(1.0, 1) + bce(-1.0, 0)
    assert losses["loss_objectness"].item() == pytest.approx(2 * base / 10, rel=1e-6)
    assert losses["loss_residual_1"].item() == pytest.approx(3 * first / 10, rel=1e-6)
    assert statistics["objectness/step0/selected"] == 4
    assert statistics["objectness/step1/selected"] == 3


def test_without_steps_there_is_one_loss():
    losses, _ = ResidualObjectnessLoss()(
        torch.zeros(1, 3),
        torch.zeros(0, 1, 3),
        torch.tensor([[1, 0, -1]], dtype=torch.int8),
        anchors_per_level=[3],
        normalizer=torch.tensor(1.0),
    )
    assert list(losses) == ["loss_objectness"]
    assert losses["loss_objectness"].item() == pytest.approx(2 * math.log(2))


def test_statistics_are_means_per_step_and_nan_without_anchors():
    logits = torch.tensor([[0.0, 0.0, 9.0]])
    residuals = torch.tensor([[[math.log(3), -math.log(3), 9.0]]])
    labels = torch.tensor([[1, 0, -1]], dtype=torch.int8)
    options = {"anchors_per_level": [3], "normalizer": torch.tensor(1.0)}
    _, statistics = ResidualObjectnessLoss()(logits, residuals, labels, **options)
    assert statistics["objectness/step0/positive"].item() == pytest.approx(0.5)
    assert statistics["objectness/step1/positive"].item() == pytest.approx(0.75)
    assert statistics["objectness/step1/negative"].item() == pytest.approx(0.25)
    _, nothing = ResidualObjectnessLoss()(logits, residuals, labels.clamp(max=0), **options)
    assert math.isnan(nothing["objectness/step0/positive"].item())
