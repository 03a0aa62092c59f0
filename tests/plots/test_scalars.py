"""Scalars of runs that were killed and resumed."""

import json

from resobj_d2.plots.scalars import read_scalars


def test_scalars_of_a_resumed_and_killed_run(tmp_path):
    lines = [
        {"iteration": 19, "total_loss": 3.0, "lr": 0.1, "bbox/APl": float("inf")},
        {"iteration": 39, "total_loss": 2.0},
        {"iteration": 59, "total_loss": 1.5, "bbox/AP": float("nan")},
        {"iteration": 39, "total_loss": 2.5},  # resumed from 20
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n{"iteration": 59, "total'
    (tmp_path / "metrics.json").write_text(text)
    found = read_scalars(tmp_path)
    assert found["total_loss"] == [(19, 3.0), (39, 2.5)] and found["lr"] == [(19, 0.1)]
    assert set(found) == {"total_loss", "lr"} and read_scalars(tmp_path / "nowhere") == {}


def test_evaluation_that_stands_before_the_last_line_of_the_training_is_kept(tmp_path):
    """As Detectron2 writes them where the first and only line comes with the evaluation."""
    lines = [{"iteration": 4, "bbox/AP": 30.0}, {"iteration": 3, "total_loss": 2.0}]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    assert read_scalars(tmp_path) == {"bbox/AP": [(4, 30.0)], "total_loss": [(3, 2.0)]}
