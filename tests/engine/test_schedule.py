"""Darknet's burn-in as a schedule of Detectron2's trainer."""

import pytest
import torch
from detectron2.config import get_cfg

from resobj_d2.engine.schedule import build_schedule


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.SOLVER.WARMUP_METHOD = "power4"
    cfg.SOLVER.WARMUP_ITERS = 1000
    cfg.SOLVER.STEPS = (1200, 1300)
    cfg.SOLVER.MAX_ITER = 1400
    return cfg


def sgd(rate=0.5):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)


def rates(cfg, optimizer, schedule, count):
    """The rate of each of the next iterations, as the trainer's hook sets them."""
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("steps", [(1200, 1300), (1300, 1200)])
def test_rises_with_the_fourth_power_then_steps(cfg, steps):
    cfg.SOLVER.STEPS = steps
    optimizer = sgd()
    found = rates(cfg, optimizer, build_schedule(cfg, optimizer), 1400)
    for iteration in (0, 1, 99, 499, 999):
        assert found[iteration] == pytest.approx(0.5 * ((iteration + 1) / 1000) ** 4), iteration
    assert found[999:1200] == pytest.approx([0.5] * 201)
    assert found[1200:1300] == pytest.approx([0.05] * 100)
    assert found[1300:] == pytest.approx([0.005] * 100)


def test_resumes_where_it_was(cfg):
    optimizer = sgd()
    schedule = build_schedule(cfg, optimizer)
    rates(cfg, optimizer, schedule, 600)
    state = schedule.state_dict(), optimizer.state_dict()
    expected = rates(cfg, optimizer, schedule, 700)
    optimizer = sgd()
    schedule = build_schedule(cfg, optimizer)
    schedule.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    assert rates(cfg, optimizer, schedule, 700) == expected


def test_without_iterations_there_is_no_burn_in(cfg):
    cfg.SOLVER.WARMUP_ITERS = 0
    optimizer = sgd()
    assert rates(cfg, optimizer, build_schedule(cfg, optimizer), 2) == [0.5, 0.5]


def test_other_methods_are_detectron2s(cfg):
    cfg.SOLVER.WARMUP_METHOD = "linear"
    cfg.SOLVER.WARMUP_FACTOR = 0.1
    optimizer = sgd()
    found = rates(cfg, optimizer, build_schedule(cfg, optimizer), 501)
    assert found[0] == pytest.approx(0.05)
    assert found[500] == pytest.approx(0.275)


def test_cosine_is_refused(cfg):
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    with pytest.raises(ValueError, match="power4.*WarmupCosineLR"):
        build_schedule(cfg, sgd())
