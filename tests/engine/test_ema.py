"""The moving average of the weights: by hand, through a resumed run, and in an evaluation."""

from collections import OrderedDict

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.config import load_config
from resobj_d2.engine import Trainer, WeightAverage, WeightAverageHook
from resobj_d2.launch import close_process_groups


class Scalar(nn.Module):
    """One weight, one running mean and one counter."""

    def __init__(self, value=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))
        self.register_buffer("mean", torch.tensor(value))
        self.register_buffer("count", torch.tensor(0))


def step(model, value):
    with torch.no_grad():
        model.weight.fill_(value)
        model.mean.fill_(10 * value)
        model.count += 1


def test_three_steps_by_hand():
    model = Scalar(1.0)
    average = WeightAverage(model, decay=0.15)
    average.start()
    # d is 1/10, then 2/11 and 3/12, which are above .15.
    expected = 1.0
    for value, decay in ((2.0, 0.1), (4.0, 0.15), (8.0, 0.15)):
        step(model, value)
        average.update()
        expected = decay * expected + (1 - decay) * value
        assert average.averages["weight"].item() == pytest.approx(expected)
    # .1 * 1 + .9 * 2 = 1.9; .15 * 1.9 + .85 * 4 = 3.685; .15 * 3.685 + .85 * 8
    assert expected == pytest.approx(7.35275)
    # The mean began at 1, not at 10.
    assert average.averages["mean"].item() == pytest.approx(73.5275 - 9 * 0.1 * 0.15**2)
    assert model.weight.item() == 8.0 and "count" not in average.averages


def test_average_begins_before_the_first_step():
    model = Scalar(1.0)
    hook = WeightAverageHook(WeightAverage(model, decay=0.5))
    hook.before_train()
    step(model, 2.0)
    hook.after_step()
    assert hook.average.averages["weight"].item() == pytest.approx(0.1 * 1 + 0.9 * 2)


def test_wrapped_model_has_the_names_of_the_model(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        average = WeightAverage(DistributedDataParallel(Scalar(1.0)), decay=0.5)
    finally:
        close_process_groups()
    average.start()
    assert set(average.averages) == {"weight", "mean"}


def test_first_weights_are_soon_forgotten():
    model = Scalar(100.0)
    average = WeightAverage(model, decay=0.9998)
    average.start()
    for _ in range(20):
        step(model, 0.0)
        average.update()
    product = 1.0
    for n in range(20):
        product *= (1 + n) / (10 + n)
    assert average.averages["weight"].item() == pytest.approx(100 * product, rel=1e-4)
    assert product < 1e-6 < 0.9998**20


def test_applied_lends_the_average_and_gives_the_weights_back():
    model = Scalar(1.0)
    average = WeightAverage(model, decay=0.5)
    average.start()
    step(model, 3.0)
    average.update()
    with pytest.raises(KeyError), average.applied():
        assert model.weight.item() == pytest.approx(2.8)
        raise KeyError
    assert (model.weight.item(), model.mean.item(), model.count.item()) == (3.0, 30.0, 1)
    assert average.averages["weight"].item() == pytest.approx(2.8)


def test_applied_gives_weights_back_that_two_layers_share():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    model[1].weight = model[0].weight
    average = WeightAverage(model, decay=0.5)
    with torch.no_grad():
        model[0].weight.fill_(0.0)
    average.start()
    with torch.no_grad():
        model[0].weight.fill_(4.0)
    for _ in range(2):
        with average.applied():
            assert model[0].weight.item() == model[1].weight.item() == 0.0
        assert model[0].weight.item() == model[1].weight.item() == 4.0


def test_checkpoint_has_the_average_as_model_and_goes_on_exactly(tmp_path):
    values = [2.0, 4.0, 8.0, 16.0]
    model, whole = Scalar(1.0), []
    average = WeightAverage(model, decay=0.5)
    average.start()
    for i, value in enumerate(values):
        step(model, value)
        average.update()
        whole.append(average.averages["weight"].item())
        if i == 1:
            ResObjCheckpointer(model, str(tmp_path), ema=average).save("half")
    assert whole[1] != 4.0

    plain = Scalar()
    ResObjCheckpointer(plain, strict=True).load(str(tmp_path / "half.pth"))
    assert plain.weight.item() == whole[1]

    model = Scalar()
    average = WeightAverage(model, decay=0.5)
    ResObjCheckpointer(model, ema=average).load(str(tmp_path / "half.pth"))
    assert (model.weight.item(), model.mean.item(), model.count.item()) == (4.0, 40.0, 2)
    assert average.updates == 2
    for value, expected in zip(values[2:], whole[2:], strict=True):
        step(model, value)
        average.update()
        assert average.averages["weight"].item() == expected


def test_weights_of_another_model_are_refused():
    average = WeightAverage(nn.Linear(2, 2), decay=0.5)
    state = WeightAverage(nn.Linear(2, 3), decay=0.5).state_dict()
    with pytest.raises(ValueError, match="another model: 2 tensors differ, the first is bias"):
        average.load_state_dict(state)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match="EMA_DECAY must be in"):
        WeightAverage(Scalar(), decay=decay)


@pytest.fixture
def make_trainer(tiny_options, tmp_path, monkeypatch, clean_catalogs, make_batch):
    """A function: overrides to a trainer of a tiny detector whose evaluation records weights."""
    batch = make_batch([(64, 64, 2), (64, 64, 1)])
    # The same images at every iteration, so that a resumed run sees what the whole one did.
    monkeypatch.setattr(Trainer, "build_train_loader", classmethod(lambda cls, cfg: [batch] * 99))

    def build(folder, *opts):
        options = ["OUTPUT_DIR", str(tmp_path / folder), "DATASETS.TRAIN", "()"]
        options += ["DATASETS.TEST", "()", "SOLVER.EMA_DECAY", "0.5", "SOLVER.WARMUP_ITERS", "0"]
        options += ["SOLVER.STEPS", "()"]
        (tmp_path / folder).mkdir(exist_ok=True)
        torch.manual_seed(0)
        return Trainer(load_config("", [*tiny_options, *options, *map(str, opts)]))

    return build


def equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def test_resumed_run_has_the_same_average(make_trainer):
    whole = make_trainer("whole", "SOLVER.MAX_ITER", 4)
    whole.train()
    half = make_trainer("half", "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2)
    half.max_iter = 2
    half.train()
    resumed = make_trainer("half", "SOLVER.MAX_ITER", 4)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    assert equal(resumed.model.state_dict(), half.model.state_dict())
    resumed.train()
    assert resumed.weight_average.updates == 4
    assert equal(resumed.model.state_dict(), whole.model.state_dict())
    assert equal(resumed.weight_average.averages, whole.weight_average.averages)
    name = "streams.anchors.stages.0.cls.weight"
    assert not torch.equal(whole.weight_average.averages[name], whole.model.state_dict()[name])


def test_evaluation_and_checkpoint_use_the_average(make_trainer, monkeypatch, tmp_path):
    seen = []

    def test(cls, cfg, model, evaluators=None):
        seen.append({name: x.clone() for name, x in model.state_dict().items()})
        return OrderedDict()

    monkeypatch.setattr(Trainer, "test", classmethod(test))
    trainer = make_trainer("run", "SOLVER.MAX_ITER", 2)
    trainer.train()
    averages = trainer.weight_average.averages
    assert len(seen) == 1 and equal({k: seen[0][k] for k in averages}, averages)
    assert not equal({k: trainer.model.state_dict()[k] for k in averages}, averages)
    saved = torch.load(tmp_path / "run/model_final.pth", weights_only=False)
    assert equal({k: saved["model"][k] for k in averages}, averages)
    assert equal(saved["ema"]["weights"], {k: trainer.model.state_dict()[k] for k in averages})


def test_precise_statistics_of_other_weights_are_refused(make_trainer):
    with pytest.raises(ValueError, match="PRECISE_BN.*EMA_DECAY"):
        make_trainer("precise", "TEST.PRECISE_BN.ENABLED", True)
