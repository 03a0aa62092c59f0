"""Timing of the border between raw predictions and losses, and small whole-detector cases."""

import time

import pytest
import torch
from torch import nn

from benchmarks import detectors
from benchmarks.cases import whole_detector
from benchmarks.worker import run_case


def test_gradients_have_arrived_when_the_border_says_so():
    """With one hook per tensor the last would only run after the layers below the others."""
    events = []
    first = torch.ones(3, requires_grad=True)
    second = torch.ones(3, requires_grad=True)
    outputs = ([first * 2, second * 3], {"x": "no tensor"})
    for leaf, name in ((first, "first"), (second, "second")):
        leaf.register_hook(lambda grad, name=name: events.append(name))
    before = [x.clone() for x in outputs[0]]
    detectors.mark_gradients(outputs, lambda: events.append("arrived"))
    assert all(torch.equal(x, y) for x, y in zip(outputs[0], before, strict=True))
    (outputs[0][0].sum() + outputs[0][1].sum()).backward()
    assert events[0] == "arrived" and sorted(events[1:]) == ["first", "second"]
    assert first.grad.tolist() == [2.0] * 3


class SlowLoss(nn.Module):
    """A model whose part after the border takes nearly all the time."""

    def __init__(self, pause):
        super().__init__()
        self.border = Predictor()
        self.pause = pause

    def forward(self, batch):
        (prediction,) = self.border(torch.ones(1))
        time.sleep(self.pause)
        return {"loss": prediction.sum()}


class Predictor(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return [x * self.weight]


def test_share_is_the_time_after_the_border():
    model = SlowLoss(0.2)
    share = detectors.Training(model, model.border, []).share(steps=1)
    assert 80 < share <= 100


@pytest.mark.slow
def test_training_case_on_a_small_detector(toy_job):
    case = whole_detector.training_case(
        "64x64", (64, 64), [2, 0], device="cpu", most=100.0, depth=18
    )
    (row,) = run_case(case, toy_job)
    assert row.error == ""
    assert set(row.metrics) == {
        f"{whole_detector.SHARE} (ours)", f"{whole_detector.SHARE} (Detectron2)",
        whole_detector.CONVOLUTIONS,
    }  # fmt: skip
    assert all(0 < value < 100 for value in row.metrics.values())


@pytest.mark.slow
def test_inference_case_on_a_small_detector(toy_job):
    case = whole_detector.inference_case("256x256", (256, 256), 2, device="cpu", depth=18)
    (row,) = run_case(case, toy_job)
    assert row.error == ""
    assert row.ours_ms > 0
