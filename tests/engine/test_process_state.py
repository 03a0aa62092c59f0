"""Running means of each process in a checkpoint."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model

from resobj_d2.engine import process_state
from resobj_d2.engine.process_state import ProcessState


@pytest.fixture
def model(tiny_cfg):
    return build_model(tiny_cfg("MODEL.DENSE.CLS_LOSS.NAME", "GHMCLoss"))


def counts(model):
    return model.streams["anchors"].stages[0].cls_loss.counts


def as_rank(monkeypatch, rank, gathered=None):
    monkeypatch.setattr(
        process_state,
        "comm",
        SimpleNamespace(
            get_rank=lambda: rank, get_world_size=lambda: 2, gather=lambda own, dst: gathered(own)
        ),
    )


def test_each_process_goes_on_with_its_own(model, monkeypatch):
    other = {name: x + 7 for name, x in ProcessState(model, period=1)._own().items()}
    hook = ProcessState(model, period=1)
    as_rank(monkeypatch, 0, gathered=lambda own: [own, other])
    hook.collect()
    state = hook.state_dict()
    counts(model).fill_(99.0)  # the checkpoint has what there was
    for rank, expected in ((0, 0.0), (1, 7.0)):
        as_rank(monkeypatch, rank)
        resumed = ProcessState(model, period=1)
        resumed.load_state_dict(state)
        assert (counts(model) == 99.0).all() or rank  # not before the run begins
        assert resumed.state_dict().keys() == state.keys()  # saved again before it begins
        resumed.before_train()
        assert (counts(model) == expected).all()


def test_another_number_of_processes_goes_on_with_the_first(model, monkeypatch):
    first = {name: x + 5 for name, x in ProcessState(model, period=1)._own().items()}
    as_rank(monkeypatch, 1)
    hook = ProcessState(model, period=1)
    hook.load_state_dict({"processes": [first]})
    hook.before_train()
    assert (counts(model) == 5.0).all()


def test_detectron2s_retinanet_keeps_its_normaliser(scenes_trainer, tmp_path):
    """Its running count of foreground is a plain number, which no other checkpoint has.

    To rounding: its losses are scripted, and the first calls of a script run another code.
    """
    options = [
        "MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", 8,
        "MODEL.RETINANET.NUM_CONVS", 1, "SEED", 2,
    ]  # fmt: skip
    whole = scenes_trainer("whole", *options, tiny=False)
    whole.train()
    part = scenes_trainer("part", *options, tiny=False)
    part.max_iter = 4
    part.train()
    resumed = scenes_trainer("part", *options, tiny=False)
    resumed.resume_or_load()
    resumed.train()
    assert resumed.start_iter == 4
    expected, found = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)
        for name in ("whole", "part")
    )
    for name, value in expected["model"].items():
        torch.testing.assert_close(found["model"][name], value, rtol=1e-6, atol=1e-9)
    assert resumed.model.loss_normalizer == whole.model.loss_normalizer != 100
