"""Ctrl-C inside a training, in this process; tests/engine/test_run.py does it to a command."""

import os
import signal
from collections import OrderedDict

import pytest
import torch
from detectron2.engine import HookBase

from resobj_d2.config import load_config
from resobj_d2.engine import RunInterrupted, Trainer


class CtrlC(HookBase):
    """Sends this process a signal at the beginning of one iteration."""

    def __init__(self, iteration, signum=signal.SIGINT):
        self.iteration, self.signum = iteration, signum

    def before_step(self):
        if self.trainer.iter == self.iteration:
            os.kill(os.getpid(), self.signum)


@pytest.fixture
def make_trainer(tiny_options, tmp_path, monkeypatch, clean_catalogs, make_batch):
    """A function: folder and overrides to a trainer of a tiny detector on one batch."""
    batch = make_batch([(64, 64, 2)])
    monkeypatch.setattr(Trainer, "build_train_loader", classmethod(lambda cls, cfg: [batch] * 99))

    def build(folder, *opts):
        options = ["OUTPUT_DIR", str(tmp_path / folder), "DATASETS.TRAIN", "()"]
        options += ["DATASETS.TEST", "()", "SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "()"]
        torch.manual_seed(0)
        cfg = load_config("", [*tiny_options, *options, *map(str, opts)])
        return Trainer(cfg, how_to_resume="do as I say")

    return build


def interrupted(trainer):
    """Train until the interruption; returns the exception."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunInterrupted) as error:
        trainer.train()
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    return error.value


def optimizer_tensors(trainer):
    return [x["momentum_buffer"] for x in trainer.optimizer.state_dict()["state"].values()]


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["SOLVER.EMA_DECAY", 0.5]], ids=["plain", "average"])
def test_interrupted_and_resumed_equals_uninterrupted(make_trainer, tmp_path, options, caplog):
    caplog.set_level("INFO", logger="resobj_d2")
    whole = make_trainer("whole", *options)
    whole.train()
    caplog.clear()
    first = make_trainer("half", *options)
    first.register_hooks([CtrlC(1)])
    assert interrupted(first).code == 130
    path = tmp_path / "half/model_0000001.pth"
    assert (tmp_path / "half/last_checkpoint").read_text() == path.name
    own = [r.getMessage() for r in caplog.records if r.name.startswith("resobj_d2.")]
    assert own[-1] == (f"Stopped after iteration 2 of 4, checkpoint {path}. To go on: do as I say")

    resumed = make_trainer("half", *options)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    expected = whole.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    momentum = optimizer_tensors(whole)
    assert len(momentum) > 20
    assert all(map(torch.equal, optimizer_tensors(resumed), momentum))


def test_sigterm_has_its_own_exit_status(make_trainer):
    trainer = make_trainer("run")
    trainer.register_hooks([CtrlC(0, signal.SIGTERM)])
    assert interrupted(trainer).code == 143


def test_checkpoint_of_the_iteration_is_not_written_twice(make_trainer, tmp_path, monkeypatch):
    written = []
    trainer = make_trainer("run", "SOLVER.CHECKPOINT_PERIOD", 2)
    save = trainer.checkpointer.save
    monkeypatch.setattr(
        trainer.checkpointer, "save", lambda name, **kw: (written.append(name), save(name, **kw))
    )
    trainer.register_hooks([CtrlC(1)])
    interrupted(trainer)
    assert written == ["model_0000001"]


class Evaluations:
    """In place of ``Trainer.test``: a signal comes in one of them, between two batches."""

    def __init__(self, interrupted):
        self.interrupted, self.count, self.finished = interrupted, 0, 0

    def __call__(self, cfg, model, evaluators=None):
        self.count += 1
        self.trainer.interrupt.check_evaluation()
        if self.count == self.interrupted:
            os.kill(os.getpid(), signal.SIGINT)
        self.trainer.interrupt.check_evaluation()
        self.finished += 1
        return OrderedDict(bbox={"AP": 1.0})


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_evaluation_is_left_and_its_iteration_saved(make_trainer, tmp_path, monkeypatch, average):
    evaluations = Evaluations(interrupted=1)
    monkeypatch.setattr(Trainer, "test", staticmethod(evaluations))
    trainer = make_trainer("run", "TEST.EVAL_PERIOD", 2, "SOLVER.EMA_DECAY", average)
    evaluations.trainer = trainer
    interrupted(trainer)
    assert (evaluations.count, evaluations.finished) == (1, 0)
    saved = torch.load(tmp_path / "run/model_0000001.pth", weights_only=True)
    assert saved["iteration"] == 1
    weights = saved["ema"]["weights"] if average else saved["model"]
    name = "streams.anchors.stages.0.cls.weight"
    assert torch.equal(weights[name], trainer.model.state_dict()[name])  # not their average


def test_last_evaluation_is_left_with_the_final_checkpoint(make_trainer, tmp_path, monkeypatch):
    evaluations = Evaluations(interrupted=1)
    monkeypatch.setattr(Trainer, "test", staticmethod(evaluations))
    trainer = make_trainer("run")
    evaluations.trainer = trainer
    interrupted(trainer)
    assert evaluations.finished == 0
    assert sorted(p.name for p in (tmp_path / "run").glob("*.pth")) == ["model_final.pth"]

    evaluations.interrupted = None
    resumed = evaluations.trainer = make_trainer("run")
    resumed.resume_or_load(resume=True)
    assert resumed.train() == {"bbox": {"AP": 1.0}}
    assert evaluations.count == 2  # it evaluates and ends


def test_signal_in_the_last_iteration_leaves_the_evaluation_out(
    make_trainer, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", logger="resobj_d2")
    evaluations = Evaluations(interrupted=None)
    monkeypatch.setattr(Trainer, "test", staticmethod(evaluations))
    trainer = evaluations.trainer = make_trainer("run")
    trainer.register_hooks([CtrlC(3)])
    interrupted(trainer)
    assert evaluations.count == 0
    assert [r.getMessage()[:7] for r in caplog.records].count("Stopped") == 1
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_final.pth"


def test_what_fails_in_the_last_iteration_is_not_evaluated(make_trainer, monkeypatch):
    class Fails(HookBase):
        def before_step(self):
            if self.trainer.iter == 3:
                raise ZeroDivisionError

    evaluations = Evaluations(interrupted=None)
    monkeypatch.setattr(Trainer, "test", staticmethod(evaluations))
    trainer = evaluations.trainer = make_trainer("run")
    trainer.register_hooks([Fails()])
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert evaluations.count == 0


def test_best_checkpoint_is_that_of_the_best_evaluation(make_trainer, tmp_path, monkeypatch):
    aps = iter([10.0, 30.0, 20.0, 5.0])
    monkeypatch.setattr(
        Trainer, "test", staticmethod(lambda *args: OrderedDict(bbox={"AP": next(aps)}))
    )
    trainer = make_trainer("run", "TEST.EVAL_PERIOD", 1, "SOLVER.CHECKPOINT_PERIOD", 1)
    trainer.train()
    best = torch.load(tmp_path / "run/model_best.pth", weights_only=True)
    assert (best["value"], best["iteration"]) == (30.0, 1)
    periodic = torch.load(tmp_path / "run/model_0000001.pth", weights_only=True)["model"]
    assert all(torch.equal(best["model"][name], x) for name, x in periodic.items())
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_final.pth"


def test_one_evaluation_at_the_end_is_of_the_final_checkpoint(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "test", staticmethod(lambda *args: OrderedDict(bbox={"AP": 10.0})))
    trainer = make_trainer("run")
    trainer.train()
    assert trainer.best.best.file == str(tmp_path / "run/model_final.pth")
    assert not (tmp_path / "run/model_best.pth").exists()
