import itertools
import logging

import pytest
from detectron2.engine.train_loop import TrainerBase
from detectron2.modeling import build_model

from resobj_d2.engine import ProgressHook
from resobj_d2.engine.progress import EvaluationProgress, duration, evaluate_with_progress
from resobj_d2.modeling.test_time_augmentation import AugmentedDetector


class Loop(TrainerBase):
    """Puts losses and a learning rate as Detectron2's trainer does."""

    def run_step(self):
        i = self.iter + 1
        self.storage.put_scalars(total_loss=3.0 * i, loss_cls=1.0 * i, loss_box_reg=2.0 * i)
        self.storage.put_scalar("lr", 0.1 / i, smoothing_hint=False)


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, logger="resobj_d2")
    own = "resobj_d2.engine.progress"
    return lambda: [record.getMessage() for record in caplog.records if record.name == own]


def train(start, end, period):
    loop = Loop()
    loop.register_hooks([ProgressHook(period=period)])
    loop.train(start, end)


def test_line_at_the_first_iteration_after_each_period_and_at_the_end(lines):
    train(0, 10, period=4)
    assert [line.split("/")[0].strip() for line in lines()] == ["1", "4", "8", "10"]


def test_resumed_run_begins_with_a_line_too(lines):
    train(5, 10, period=4)
    assert [line.split("/")[0].strip() for line in lines()] == ["6", "8", "10"]


def test_line(lines, monkeypatch):
    clock = itertools.count(step=1.5)  # looked at before and after each step
    monkeypatch.setattr("resobj_d2.engine.progress.time.perf_counter", lambda: next(clock))
    train(0, 10, period=4)
    assert lines()[:2] == [
        " 1/10  loss 3 (cls 1, box_reg 2)  lr 0.1  1.5 s/iteration  ETA 00:14",
        # Medians over iterations 1 to 4; the rate is the last one.
        " 4/10  loss 7.5 (cls 2.5, box_reg 5)  lr 0.025  1.5 s/iteration  ETA 00:09",
    ]


def test_durations():
    assert duration(5.4) == "00:05"
    assert duration(3599.6) == "1:00:00"
    assert duration(100_000) == "1 day, 3:46:40"


def evaluate(progress, batches):
    progress.reset()
    for size in batches:
        progress.process([{}] * size, [{}] * size)
    return progress.evaluate()


def test_evaluation_tells_now_and_then(lines, monkeypatch):
    now = iter([0.0, 10.0, 31.0, 45.0, 62.0])
    monkeypatch.setattr("resobj_d2.engine.progress.time.monotonic", lambda: next(now))
    assert evaluate(EvaluationProgress(name="val", total=10), [2, 2, 1, 1]) is None
    assert lines() == [
        "evaluating val: 4/10 images, ETA 00:46",  # 31 s for 4
        "evaluating val: 6/10 images, ETA 00:41",  # 62 s for 6
    ]


def test_evaluation_ends_where_the_check_raises():
    calls = []

    def check():
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        evaluate(EvaluationProgress(name="val", total=9, check=check), [1] * 9)
    assert len(calls) == 3


def test_evaluations_use_test_time_augmentation(tiny_cfg):
    class Trainer:
        @classmethod
        def test(cls, cfg, model, evaluators):
            return model

    model = build_model(tiny_cfg())
    for enabled in (False, True):
        cfg = tiny_cfg("TEST.AUG.ENABLED", enabled, "DATASETS.TEST", "()")
        evaluated = evaluate_with_progress(Trainer, cfg, model, contents={})
        assert isinstance(evaluated, AugmentedDetector) == enabled
        assert getattr(evaluated, "model", evaluated) is model
