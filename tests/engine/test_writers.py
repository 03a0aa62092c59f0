"""Scalars in a CSV file and in Weights & Biases."""

import csv
import json
import sys
from types import SimpleNamespace

import pytest

from resobj_d2.config import load_config


def rows(path):
    with path.open(newline="") as file:
        head, *others = csv.reader(file)
    assert head == ["iteration", "name", "value"]
    return [(int(i), name, float(value)) for i, name, value in others]


def test_csv_has_what_the_json_has_and_a_resumed_run_appends(scenes_trainer, tmp_path):
    options = ["WRITERS", "['csv']", "SOLVER.MAX_ITER", 22, "SOLVER.CHECKPOINT_PERIOD", 10]
    trainer = scenes_trainer("run", *options)
    trainer.train()
    written = rows(tmp_path / "run/metrics.csv")
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.json").open()]
    expected = [
        (row["iteration"], name, value)
        for row in logged
        for name, value in sorted(row.items())
        if name != "iteration"
    ]
    assert sorted(written) == sorted(expected) and {i for i, *_ in written} == {19, 21}

    (tmp_path / "run/last_checkpoint").write_text("model_0000019.pth")
    resumed = scenes_trainer("run", *options)
    resumed.resume_or_load()
    resumed.train()
    again = rows(tmp_path / "run/metrics.csv")
    assert [row for row in again if row[0] == 19] == [row for row in written if row[0] == 19]
    assert [name for i, name, _ in again if i == 21].count("total_loss") == 1


class Wandb(SimpleNamespace):
    """The part of the package that is called, and what it was called with."""

    def __init__(self):
        super().__init__(begun=[], logged=[], finished=0)

    def init(self, *, dir, id, resume):
        self.begun.append((id, resume))

        def finish():
            self.finished += 1

        return SimpleNamespace(
            id=id or "new", log=self.logged.append, finish=finish, define_metric=lambda *a, **k: 0
        )


def test_wandb_gets_each_iteration_once_and_a_resumed_run_goes_on(
    scenes_trainer, tmp_path, monkeypatch
):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    options = ["WRITERS", "['wandb', 'wandb']", "SOLVER.MAX_ITER", 3]
    scenes_trainer("run", *options).train()
    assert wandb.begun == [(None, "allow")] and wandb.finished == 1
    assert (tmp_path / "run/wandb_run.txt").read_text() == "new"
    assert [row["iteration"] for row in wandb.logged] == [2]
    assert wandb.logged[0]["total_loss"] > 0
    resumed = scenes_trainer("run", *options, "SOLVER.MAX_ITER", 5)
    resumed.resume_or_load()
    resumed.train()
    assert wandb.begun[1:] == [("new", "allow")] and wandb.finished == 2
    for checkpoint in (tmp_path / "run").glob("model_*.pth"):
        checkpoint.unlink()
    scenes_trainer("run", *options).train()  # anew
    assert wandb.begun[2:] == [(None, "allow")]


def test_package_that_is_missing_is_told(scenes_trainer, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match="pip install wandb"):
        scenes_trainer("run", "WRITERS", "['wandb']")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["WRITERS", "['cvs']"], "WRITERS are csv and wandb, got cvs"),
        (["SOLVER.ACCUMULATION_STEPS", "3"], "divide SOLVER.IMS_PER_BATCH 16, got 3"),
        (["SOLVER.ACCUMULATION_STEPS", "0"], "ACCUMULATION_STEPS must be at least 1"),
        (["SOLVER.CHECKPOINT_KEEP", "-1"], "SOLVER.CHECKPOINT_KEEP must not be negative, got -1"),
        (["TEST.PATIENCE", "2"], "TEST.EVAL_PERIOD above 0"),
    ],
)
def test_mistakes_are_refused(tiny_options, options, words):
    with pytest.raises(ValueError, match=words):
        load_config("", [*tiny_options, "SOLVER.STEPS", "()", "DATASETS.TRAIN", "()",
                         "DATASETS.TEST", "()", *options])  # fmt: skip
