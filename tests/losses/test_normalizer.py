import torch

from resobj_d2.losses import (
    ForegroundCount,
    ForegroundCountPlusOne,
    ForegroundEMA,
    ImageCount,
    TrainedCount,
)


def call(normalizer, foreground, trained=1000, images=4):
    return normalizer(torch.tensor(foreground), torch.tensor(trained), images)


def test_ema_by_hand():
    normalizer = ForegroundEMA(initial=100.0, momentum=0.9)
    assert call(normalizer, 50).item() == 95.0
    torch.testing.assert_close(call(normalizer, 0), torch.tensor(0.9 * 95.0 + 0.1))


def test_ema_survives_a_checkpoint():
    first, second = ForegroundEMA(), ForegroundEMA()
    call(first, 7)
    second.load_state_dict(first.state_dict())
    assert torch.equal(call(first, 3), call(second, 3))


def test_counts_are_at_least_one():
    assert call(ForegroundCount(), 0).item() == 1.0
    assert call(ForegroundCount(), 12).item() == 12.0
    assert call(TrainedCount(), 12, 0).item() == 1.0
    assert call(TrainedCount(), 12, 256).item() == 256.0


def test_counts_of_other_things():
    assert call(ForegroundCountPlusOne(), 0).item() == 1.0
    assert call(ForegroundCountPlusOne(), 12).item() == 13.0
    assert call(ImageCount(), 12, images=3).item() == 3.0
