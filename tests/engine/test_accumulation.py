"""A step on the parts of a batch against one on the whole batch."""

import copy

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from resobj_d2.engine.accumulation import accumulated_step

METHODS = {
    "fl": [],
    "resobj": ["MODEL.DENSE.OBJECTNESS.ENABLED", "True", "MODEL.DENSE.STAGES",
               "[{'CLS': 'own', 'TOWER': 'gated'}]"],
    "ghm": ["MODEL.DENSE.CLS_LOSS.NAME", "GHMCLoss", "MODEL.DENSE.BOX_LOSS.NAME", "GHMRLoss"],
    "conf": ["MODEL.DENSE.QUALITY.ENABLED", "True"],
    "random": ["MODEL.DENSE.SAMPLER.NAME", "RandomSampler"],
}  # fmt: skip
SHAPES = [(64, 64, 3), (64, 64, 0), (64, 64, 1), (64, 64, 5)]  # images with so many objects


def stepped(model, batch, number):
    """The weights, the running means and the written losses after two steps."""
    model = copy.deepcopy(model)
    # Large enough a rate to see a wrong gradient, and linear in it.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer = SimpleTrainer(model, [batch, batch[::-1]], optimizer)
    with EventStorage() as storage:
        for iteration in range(2):
            trainer.iter = storage.iter = iteration
            if number:
                accumulated_step(trainer, number=number, seed_part=torch.manual_seed)
            else:
                trainer.run_step()
        losses = {k: v for k, (v, _) in storage.latest().items() if "loss" in k}
    return model.state_dict(), losses


def spread(model):
    """With objectness so different that rounding does not decide which anchors are selected."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "objectness" in name and parameter.dim() > 1:
                parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_parts_equal_the_whole_batch(tiny_cfg, make_batch, method):
    torch.manual_seed(0)
    model = spread(build_model(tiny_cfg(*METHODS[method])))
    batch = make_batch(SHAPES)
    state, losses = stepped(model, batch, 1 if method == "random" else 0)
    for number in (2, 4):
        parts, of_parts = stepped(model, batch, number)
        if method == "random":  # which anchors are drawn is another matter
            assert all(torch.isfinite(value).all() for value in parts.values())
            continue
        assert of_parts.keys() == losses.keys()
        for name, value in losses.items():
            assert of_parts[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
        before = model.state_dict()
        for name, value in state.items():
            moved = (value - before[name]).abs().max() if value.numel() else 0.0
            difference = (parts[name] - value).abs().max() if value.numel() else 0.0
            assert difference <= 1e-3 * moved + 1e-6, (name, difference, moved)


def test_without_the_count_of_the_whole_batch_it_would_not(tiny_cfg, make_batch, monkeypatch):
    torch.manual_seed(0)
    model = build_model(tiny_cfg("MODEL.DENSE.NORMALIZER.NAME", "ForegroundCount"))
    batch = make_batch(SHAPES)
    _, losses = stepped(model, batch, 0)
    monkeypatch.setattr("resobj_d2.losses.parts.BatchParts.sum", lambda self, count: count)
    _, wrong = stepped(model, batch, 4)
    assert wrong["total_loss"] != pytest.approx(losses["total_loss"], rel=0.05)


def test_detectron2s_own_detector(tiny_rcnn, make_batch):
    """Its losses are divided by numbers of its own: the parts are averaged."""
    torch.manual_seed(0)
    model = build_model(tiny_rcnn())
    before = copy.deepcopy(model.state_dict())
    state, losses = stepped(model, make_batch(SHAPES), 2)
    assert any(not torch.equal(value, before[name]) for name, value in state.items())
    assert all(value == value for value in losses.values())
