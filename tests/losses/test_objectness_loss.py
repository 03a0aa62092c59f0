import math

import pytest
import torch

from resobj_d2.losses import ResidualObjectnessLoss, objectness_difficulty


def bce(logit, label):
    return math.log1p(math.exp(-logit)) if label else math.log1p(math.exp(logit))


@pytest.mark.parametrize("normalizer", [torch.tensor(10.0), torch.tensor([10.0]), 10.0])
def test_algorithm_1_by_hand(normalizer):
    """One image, four anchors: two foreground (the lower at 0), one hard and one easy negative."""
    logits = torch.tensor([[2.0, 0.0, 1.0, -3.0]])
    residuals = torch.tensor([[[0.5, 1.0, -2.0, 4.0]]])
    labels = torch.tensor([[1, 1, 0, 0]], dtype=torch.int8)
    loss = ResidualObjectnessLoss(weight=2.0, residual_weight=3.0)
    losses, statistics = loss(
        logits, residuals, labels, anchors_per_level=[4], normalizer=normalizer
    )
    base = bce(2, 1) + bce(0, 1) + bce(1, 0) + bce(-3, 0)
    # The minimum positive score is 0, so the anchor at -3 is not selected, whatever its residual.
    first = bce(2.5, 1) + bce(1.0, 1) + bce(-1.0, 0)
    assert losses["loss_objectness"].shape == losses["loss_residual_1"].shape == ()
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


# Two images of two anchors on each of two levels; positive where foreground.
SCOPED = torch.tensor([[2.0, 1.0, 0.5, -1.0], [-0.5, 0.0, 3.0, 3.5]])
SCOPED_LABELS = torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0]], dtype=torch.int8)


@pytest.mark.parametrize(
    "scope, selected",
    [
        ("image", [2.0, 0.0, 3.0, 3.5]),  # from 2 on in the first, from 0 on in the second
        ("batch", [2.0, 1.0, 0.5, 0.0, 3.0, 3.5]),  # from 0 on
        ("level", [2.0, 1.0, 0.0, 3.0, 3.5]),  # from 0 on in the first, from 3 on in the second
        ("none", SCOPED.flatten().tolist()),
    ],
)
def test_scope_of_the_minimum_by_hand(scope, selected):
    losses, statistics = ResidualObjectnessLoss(min_scope=scope)(
        SCOPED,
        torch.zeros(1, 2, 4),
        SCOPED_LABELS,
        anchors_per_level=[2, 2],
        normalizer=torch.tensor(1.0),
    )
    foreground = SCOPED[SCOPED_LABELS == 1].tolist()
    expected = sum(bce(x, x in foreground) for x in selected)
    assert statistics["objectness/step1/selected"] == len(selected)
    assert losses["loss_residual_1"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("unselected, selected", [("update", 3), ("keep", 2)])
def test_an_anchor_that_was_not_selected_moves_or_stays(unselected, selected):
    """The last anchor starts below the minimum of 0; moved by 4 it reaches the next one, 1."""
    residuals = torch.tensor([[[0.5, 1.0, -2.0, 4.0]], [[0.0] * 4]])
    _, statistics = ResidualObjectnessLoss(unselected=unselected)(
        torch.tensor([[2.0, 0.0, 1.0, -3.0]]),
        residuals,
        torch.tensor([[1, 1, 0, 0]], dtype=torch.int8),
        anchors_per_level=[4],
        normalizer=torch.tensor(1.0),
    )
    assert statistics["objectness/step1/selected"] == 3
    assert statistics["objectness/step2/selected"] == selected


@pytest.mark.parametrize(
    "detach, trained", [("all", [0, 0, 1]), ("objectness", [0, 1, 1]), ("none", [1, 1, 1])]
)
def test_what_the_loss_of_the_second_step_trains(detach, trained):
    logits = torch.zeros(1, 2, requires_grad=True)
    residuals = torch.zeros(2, 1, 2, requires_grad=True)
    losses, _ = ResidualObjectnessLoss(detach=detach)(
        logits,
        residuals,
        torch.tensor([[1, 0]], dtype=torch.int8),
        anchors_per_level=[2],
        normalizer=torch.tensor(1.0),
    )
    losses["loss_residual_2"].backward()
    # The derivative is sigmoid(0) less the label, wherever it arrives.
    slope = torch.tensor([[-0.5, 0.5]])
    for gradient, reached in zip((logits.grad, *residuals.grad), trained, strict=True):
        torch.testing.assert_close(gradient, reached * slope)


def test_difficulty_is_the_cross_entropy_and_nan_is_the_hardest():
    logits = torch.tensor([[2.0, 2.0, -1.0, math.nan]])
    foreground = torch.tensor([[True, False, True, False]])
    found = objectness_difficulty(logits, foreground)[0].tolist()
    assert found == pytest.approx([bce(2, 1), bce(2, 0), bce(-1, 1), math.inf])
