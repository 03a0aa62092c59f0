import pytest
import torch
from fvcore.nn import smooth_l1_loss as fvcore_smooth_l1

from resobj_d2.losses import SmoothL1Loss, smooth_l1_loss


def test_by_hand():
    pred = torch.tensor([[0.05, 0.0, 0.0, 2.0], [9.0, 9.0, 9.0, 9.0]])
    loss = smooth_l1_loss(pred, torch.zeros(2, 4), torch.tensor([True, False]), beta=0.1)
    # 0.05 is below beta, 2 above: 0.5 * 0.05^2 / 0.1 + (2 - 0.05)
    assert loss.item() == pytest.approx(0.0125 + 1.95)


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
def test_equals_fvcore(beta):
    torch.manual_seed(0)
    pred, target = torch.randn(2, 30, 4, requires_grad=True), torch.randn(2, 30, 4)
    mask = torch.rand(2, 30) > 0.5
    ours = SmoothL1Loss(beta=beta)(pred, target, mask)
    theirs = fvcore_smooth_l1(pred[mask], target[mask], beta, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, pred)[0], torch.autograd.grad(theirs, pred)[0]
    )


def test_unmasked_nan_does_not_leak():
    pred = torch.tensor([[1.0] * 4, [float("nan")] * 4], requires_grad=True)
    loss = smooth_l1_loss(pred, torch.zeros(2, 4), torch.tensor([True, False]))
    loss.backward()
    assert torch.isfinite(loss) and torch.equal(pred.grad[1], torch.zeros(4))


def test_negative_beta_is_refused():
    with pytest.raises(ValueError, match="BETA"):
        SmoothL1Loss(beta=-0.1)
