"""GHM against loops that follow the paper, and its state."""

import copy
import math

import pytest
import torch

from resobj_d2.losses import GHMCLoss, GHMRLoss


def loop(norms, losses, counts, momentum):
    """Sum of weight * loss over plain lists; updates ``counts``, one number per bin."""
    bins = [min(int(g * len(counts)), len(counts) - 1) for g in norms]
    used = sorted(set(bins))
    for b in used:
        counts[b] = momentum * counts[b] + (1 - momentum) * bins.count(b)
    total = len(norms)
    return sum(
        total / counts[b] / len(used) * loss for b, loss in zip(bins, losses, strict=True)
    ) / max(total, 1)


def test_class_loss_agrees_with_the_loop_over_three_calls():
    torch.manual_seed(0)
    loss, counts = GHMCLoss(bins=5, momentum=0.75), [0.0] * 5
    for _ in range(3):
        logits = 3 * torch.randn(2, 6, 3)
        labels = torch.randint(-1, 4, (2, 6))
        mask = torch.rand(2, 6) < 0.7
        norms, losses = [], []
        for n, r in torch.nonzero(mask & (labels >= 0)).tolist():
            for k in range(3):
                p = 1 / (1 + math.exp(-logits[n, r, k].item()))
                t = float(labels[n, r].item() == k)
                norms.append(abs(p - t))
                losses.append(-t * math.log(p) - (1 - t) * math.log(1 - p))
        expected = loop(norms, losses, counts, 0.75)
        assert loss(logits, labels, mask).item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(loss.counts, torch.tensor(counts))


def test_box_loss_agrees_with_the_loop():
    torch.manual_seed(1)
    loss, counts = GHMRLoss(bins=4, momentum=0.7, mu=0.02), [0.0] * 4
    for _ in range(2):
        pred, target = 0.1 * torch.randn(2, 5, 4), 0.1 * torch.randn(2, 5, 4)
        mask = torch.rand(2, 5) < 0.6
        d = (pred - target)[mask].flatten().tolist()
        roots = [math.sqrt(x * x + 0.02**2) for x in d]
        norms = [abs(x) / root for x, root in zip(d, roots, strict=True)]
        expected = loop(norms, [root - 0.02 for root in roots], counts, 0.7)
        assert loss(pred, target, mask).item() == pytest.approx(expected, rel=1e-4)


def test_two_bins_by_hand():
    """Three easy elements share a bin, one hard one has its own: each bin gets half the weight."""
    loss = GHMCLoss(bins=2, momentum=0.0)
    logits = torch.tensor([[[-2.0], [-2.0], [-2.0], [2.0]]])
    labels = torch.ones(1, 4, dtype=torch.int64)  # K = 1: all background
    easy, hard = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    value = loss(logits, labels, torch.ones(1, 4, dtype=torch.bool))
    assert value.item() == pytest.approx((easy + hard) / 2)


def test_an_element_that_is_wholly_wrong_is_in_the_last_bin():
    """A sigmoid of 100 is 1; its bin and the first one have an element each."""
    loss = GHMCLoss(bins=4, momentum=0.0)
    logits, labels = torch.tensor([[[100.0], [-100.0]]]), torch.ones(1, 2, dtype=torch.int64)
    value = loss(logits, labels, torch.ones(1, 2, dtype=torch.bool))
    assert value.item() == pytest.approx(100 / 2)
    assert loss.counts.tolist() == [1, 0, 0, 1]


def test_weights_carry_no_gradient():
    loss = GHMCLoss(bins=2, momentum=0.0)
    logits = torch.tensor([[[-2.0], [2.0]]], requires_grad=True)
    labels = torch.ones(1, 2, dtype=torch.int64)
    loss(logits, labels, torch.ones(1, 2, dtype=torch.bool)).backward()
    # Each of the two bins holds one element: d/dx softplus = sigmoid, times 1/2.
    torch.testing.assert_close(logits.grad, 0.5 * torch.sigmoid(logits.detach()))


@pytest.mark.parametrize("loss", [GHMCLoss(), GHMRLoss()])
def test_state_is_saved(loss):
    torch.manual_seed(0)
    loss = copy.deepcopy(loss)
    args = (torch.randn(1, 8, 4), torch.zeros(1, 8, dtype=torch.int64)), torch.ones(1, 8).bool()
    if isinstance(loss, GHMRLoss):
        args = (torch.randn(1, 8, 4), torch.zeros(1, 8, 4)), args[1]
    (pred, target), mask = args
    loss(pred, target, mask)
    other = type(loss)()
    other.load_state_dict(loss.state_dict())
    assert loss.counts.sum() > 0
    assert torch.equal(loss(pred, target, mask), other(pred, target, mask))


def test_an_empty_mask_gives_zero_and_keeps_the_state():
    loss = GHMCLoss()
    logits = torch.full((1, 3, 2), torch.nan, requires_grad=True)
    value = loss(logits, torch.full((1, 3), -1), torch.ones(1, 3, dtype=torch.bool))
    assert value.item() == 0 and value.requires_grad
    value.backward()
    assert logits.grad.count_nonzero() == 0
    assert loss.counts.sum() == 0


def test_more_elements_than_float32_can_count():
    """A batch at 800 pixels has 30 million elements, but float32 stops counting at 2^24."""
    loss = GHMCLoss(bins=2, momentum=0.0)
    number = 2**24 + 2**20
    loss.weights(torch.zeros(number), torch.ones(number, dtype=torch.bool))
    assert loss.counts.tolist() == [number, 0]


def test_gradient_of_the_box_loss_by_hand():
    """One element of norm .6 and three of norm 0, in two bins: slope .6 / (1 * 2)."""
    loss = GHMRLoss(bins=2, momentum=0.0, mu=0.04)
    pred = torch.tensor([[0.03, 0.0, 0.0, 0.0]], requires_grad=True)
    value = loss(pred, torch.zeros(1, 4), torch.tensor([True]))
    value.backward()
    assert value.item() == pytest.approx((0.05 - 0.04) / 2)
    torch.testing.assert_close(pred.grad, torch.tensor([[0.3, 0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("kwargs", [{"bins": 0}, {"momentum": 1.0}, {"momentum": -0.1}])
def test_bad_options_are_refused(kwargs):
    with pytest.raises(ValueError, match="GHM_BINS"):
        GHMCLoss(**kwargs)
    with pytest.raises(ValueError, match="GHM_MU"):
        GHMRLoss(mu=0.0)
