import math

import pytest
import torch
from torch import nn

from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.engine import BestCheckpoint, primary_ap


def results(ap):
    return {"bbox": {"AP": ap, "AP50": 99.0}, "segm": {"AP": 77.0}}


CATEGORIES = [{"id": 7, "name": "cat"}]


@pytest.fixture
def checkpointer(tmp_path):
    return ResObjCheckpointer(nn.Linear(1, 1), str(tmp_path), categories=CATEGORIES)


def set_weight(model, value):
    with torch.no_grad():
        model.weight.fill_(value)


def test_primary_ap():
    assert primary_ap(results(12.5)) == 12.5
    assert primary_ap({"set a": results(3.0), "set b": results(4.0)}) == 3.0
    assert math.isnan(primary_ap({"set a": {"proposals": {"AR": 3.0}}, "n": 4.0}))
    assert math.isnan(primary_ap({}))


def test_keeps_the_weights_of_the_highest_ap(checkpointer, tmp_path):
    best = BestCheckpoint(checkpointer)
    assert best.best is None
    for iteration, ap in enumerate([math.nan, 10.0, 30.0, 20.0, 30.0, math.nan]):
        set_weight(checkpointer.model, iteration)
        best.consider(results(ap), iteration=iteration)
        assert (best.best is None) == (iteration == 0)
    assert (best.best.value, best.best.iteration) == (30.0, 2)
    saved = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert saved["model"]["weight"].item() == 2.0
    assert (saved["value"], saved["iteration"], saved["categories"]) == (30.0, 2, CATEGORIES)


def test_checkpoint_that_is_there_is_not_written_again(checkpointer, tmp_path):
    best = BestCheckpoint(checkpointer)
    best.consider(results(10.0), iteration=7, file="out/model_final.pth")
    assert best.best.file == "out/model_final.pth"
    assert list(tmp_path.iterdir()) == []


def test_goes_on_with_the_run_but_not_with_another_one(checkpointer, tmp_path):
    BestCheckpoint(checkpointer).consider(results(30.0), iteration=5)
    resumed = BestCheckpoint(checkpointer)
    resumed.resume(6)
    assert (resumed.best.value, resumed.best.iteration) == (30.0, 5)
    resumed.consider(results(20.0), iteration=9)
    assert resumed.best.iteration == 5


@pytest.mark.parametrize("start", [0, 5])
def test_forgets_the_best_of_iterations_that_are_trained_again(checkpointer, start):
    """Anew, or taken back to before that evaluation."""
    best = BestCheckpoint(checkpointer)
    best.consider(results(30.0), iteration=5)
    best.resume(start)
    assert best.best is None
    best.consider(results(20.0), iteration=9)
    assert (best.best.value, best.best.iteration) == (20.0, 9)


@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_damaged_file_is_written_anew(checkpointer, tmp_path, content, caplog):
    (tmp_path / "model_best.pth").write_bytes(content)
    best = BestCheckpoint(checkpointer)
    best.resume(3)
    assert best.best is None and "model_best.pth cannot be read" in caplog.text
    best.consider(results(1.0), iteration=4)
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 4


def test_a_new_run_puts_the_best_of_an_earlier_one_aside(checkpointer, tmp_path):
    (tmp_path / "model_best.pth").write_bytes(b"of another run")
    best = BestCheckpoint(checkpointer)
    best.resume(0)
    assert best.best is None and not (tmp_path / "model_best.pth").exists()
    assert (tmp_path / "model_best.pth.old").read_bytes() == b"of another run"


def test_each_new_run_keeps_the_best_of_all_earlier_ones(checkpointer, tmp_path):
    for run in ("first", "second", "third"):
        (tmp_path / "model_best.pth").write_text(run)
        BestCheckpoint(checkpointer).resume(0)
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {
        "model_best.pth.old": "first",
        "model_best.pth.old2": "second",
        "model_best.pth.old3": "third",
    }


@pytest.mark.parametrize(
    "metric, best",
    [
        ("validation/total_loss", 1.0),
        ("validation/loss_cls", 1.0),
        ("bbox/AP-gloss", 3.0),
        ("a/bbox/AP-total_loss", 3.0),
        ("AP", 3.0),
    ],
)
def test_only_losses_are_best_when_they_are_low(checkpointer, metric, best):
    kept = BestCheckpoint(checkpointer, metric=metric)
    for iteration, value in enumerate((2.0, 1.0, 3.0)):
        figures: object = value
        for name in reversed(metric.split("/")):
            figures = {name: figures}
        figures = {"bbox": figures} if metric == "AP" else figures
        kept.consider(figures, iteration=iteration)
    assert kept.best.value == best
