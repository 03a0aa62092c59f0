import pytest
import torch
import torch.distributed as dist

from resobj_d2.losses import (
    ForegroundCount,
    ForegroundCountPlusOne,
    ForegroundEMA,
    ImageCount,
    TrainedCount,
    weight_sum,
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


def test_ema_of_a_second_forward_leaves_the_graph_of_the_first():
    normalizer, weight = (
        ForegroundEMA(initial=10.0, momentum=0.5),
        torch.ones((), requires_grad=True),
    )
    first = weight / call(normalizer, 30)  # 20
    second = weight / call(normalizer, 60)  # 40
    (first + second).backward()
    assert weight.grad.item() == pytest.approx(1 / 20 + 1 / 40)


@pytest.fixture
def another_process(monkeypatch):
    """As if a second process had no foreground, 501 trained anchors and 2 images."""
    theirs = {12.0: 0.0, 1.0: 0.0, 500.0: 501.0, 4.0: 2.0}
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda count: count.add_(theirs[count.item()]))


def test_counts_are_means_over_the_processes(another_process):
    assert call(ForegroundCount(), 12).item() == 6.0
    assert call(ForegroundCount(), 1).item() == 1.0  # the mean, a half, is raised to one
    assert call(ForegroundCountPlusOne(), 12).item() == 7.0
    assert call(TrainedCount(), 12, trained=500).item() == 500.5
    assert call(ImageCount(), 12, images=4).item() == 3.0
    assert call(ForegroundEMA(initial=2.0, momentum=0.5), 12).item() == 4.0
    mask = torch.tensor([True, True, True, False])
    assert weight_sum(torch.tensor([3.0, 4.0, 5.0, torch.nan]), mask).item() == 6.0
    # The counts themselves belong to the targets and stay.
    own = torch.tensor(12.0)
    ForegroundCount()(own, own, 4)
    assert own.item() == 12.0
