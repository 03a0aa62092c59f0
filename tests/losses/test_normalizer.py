import torch

from resobj_d2.losses import ForegroundCount, ForegroundEMA


def test_ema_by_hand():
    normalizer = ForegroundEMA(initial=100.0, momentum=0.9)
    assert normalizer(torch.tensor(50)).item() == 95.0
    torch.testing.assert_close(normalizer(torch.tensor(0)), torch.tensor(0.9 * 95.0 + 0.1))


def test_ema_survives_a_checkpoint():
    first, second = ForegroundEMA(), ForegroundEMA()
    first(torch.tensor(7))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(torch.tensor(3)), second(torch.tensor(3)))


def test_count_is_at_least_one():
    assert ForegroundCount()(torch.tensor(0)).item() == 1.0
    assert ForegroundCount()(torch.tensor(12)).item() == 12.0
