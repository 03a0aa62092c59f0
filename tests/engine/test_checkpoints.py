"""Which checkpoints stay, which one is the best, and when training ends early."""

import json
from collections import OrderedDict

import pytest
import torch
from detectron2.data import MetadataCatalog

from resobj_d2.engine import Trainer
from resobj_d2.engine.best import metric_value
from resobj_d2.engine.checkpoints import EarlyStop

SOLVER = ["SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.MAX_ITER", 6]
EVALUATED = ["DATASETS.TEST", "('tiny_val',)", "TEST.EVAL_PERIOD", 1]


@pytest.fixture
def evaluations(monkeypatch):
    """A function: the results of the evaluations to come."""

    def give(*values, name="AP"):
        results = iter([OrderedDict(bbox={"AP": 50.0, name: value}) for value in values])
        monkeypatch.setattr(Trainer, "test", staticmethod(lambda *args: next(results)))

    return give


def numbered(folder):
    return sorted(int(path.stem[6:]) for path in folder.glob("model_0*.pth"))


def test_last_checkpoints_are_kept(scenes_trainer, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model_best.pth.old").write_bytes(b"former")
    scenes_trainer("run", *SOLVER, "SOLVER.CHECKPOINT_KEEP", 2).train()
    assert numbered(folder) == [4, 5]
    (folder / "model_0000077.pth").write_bytes(b"of another run")
    resumed = scenes_trainer("run", *SOLVER, "SOLVER.CHECKPOINT_KEEP", 3, "SOLVER.MAX_ITER", 8)
    resumed.resume_or_load()
    resumed.train()
    assert numbered(folder) == [5, 6, 7, 77]
    assert (folder / "model_final.pth").is_file() and (folder / "model_best.pth.old").is_file()


def test_resumed_run_writes_the_list_of_an_uninterrupted_one(scenes_trainer, tmp_path):
    options = [*SOLVER, "SOLVER.CHECKPOINT_KEEP", 2]
    scenes_trainer("whole", *options, "SOLVER.MAX_ITER", 5).train()
    scenes_trainer("run", *options, "SOLVER.MAX_ITER", 4).train()
    resumed = scenes_trainer("run", *options, "SOLVER.MAX_ITER", 5)
    resumed.resume_or_load()
    resumed.train()
    for folder in ("whole", "run"):
        final = torch.load(tmp_path / folder / "model_final.pth", weights_only=True)
        assert final["written"] == [f"model_{i:07d}.pth" for i in (2, 3, 4)]


def test_checkpoints_of_an_earlier_run_stay(scenes_trainer, tmp_path):
    """Of lower and of higher iterations, which somebody has put beside a run that is resumed."""
    folder = tmp_path / "run"
    options = [*SOLVER, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.CHECKPOINT_KEEP", 1]
    scenes_trainer("run", *options).train()
    assert numbered(folder) == [5]
    former = [folder / f"model_{iteration:07d}.pth" for iteration in (0, 2, 9, 5000)]
    for path in former:
        path.write_bytes(b"former")
    resumed = scenes_trainer("run", *options, "SOLVER.MAX_ITER", 8)
    resumed.resume_or_load()
    resumed.train()
    assert numbered(folder) == [0, 2, 7, 9, 5000]
    assert all(path.read_bytes() == b"former" for path in former)


@pytest.mark.parametrize("patience, period", [(3, 0), (0, 3), (3, -1)])
def test_patience_needs_evaluations(patience, period):
    with pytest.raises(ValueError, match="must be positive"):
        EarlyStop(None, patience=patience, period=period)


def test_all_checkpoints_are_kept_otherwise(scenes_trainer, tmp_path):
    scenes_trainer("run", *SOLVER).train()
    assert numbered(tmp_path / "run") == [0, 1, 2, 3, 4, 5]


def test_training_ends_when_it_has_not_become_better_for_a_while(
    scenes_trainer, tmp_path, evaluations, caplog
):
    caplog.set_level("INFO", logger="resobj_d2")
    options = [*SOLVER, *EVALUATED, "TEST.PATIENCE", 2, "TEST.BEST_METRIC", "bbox/AP50"]
    evaluations(10.0, 30.0, 20.0, 30.0, name="AP50")
    results = scenes_trainer("run", *options).train()
    assert results["bbox"]["AP50"] == 30.0
    words = "Training ends after iteration 4 of 6: 2 evaluations have not been better than "
    assert words + "bbox/AP50 30.0 after iteration 2" in caplog.text
    assert "Evaluation after iteration 4:" in caplog.text
    final = torch.load(tmp_path / "run/model_final.pth", weights_only=True)
    assert final["iteration"] == 3
    best = torch.load(tmp_path / "run/model_best.pth", weights_only=True)
    assert (best["metric"], best["value"], best["iteration"]) == ("bbox/AP50", 30.0, 1)

    evaluations()  # it has ended: nothing is trained, nothing evaluated
    ended = scenes_trainer("run", *options)
    ended.resume_or_load()
    ended.train()
    assert ended.start_iter == 4

    evaluations(31.0, 1.0)
    patient = scenes_trainer("run", *options, "TEST.PATIENCE", 4)
    patient.resume_or_load()
    evaluations(31.0, 1.0, name="AP50")
    patient.train()
    assert torch.load(tmp_path / "run/model_final.pth", weights_only=True)["iteration"] == 5
    assert patient.best.best.value == 31.0


def test_resumed_run_counts_its_patience_from_the_best_one(scenes_trainer, tmp_path, evaluations):
    options = [*SOLVER, *EVALUATED, "TEST.PATIENCE", 3]
    evaluations(10.0, 5.0)
    scenes_trainer("run", *options, "SOLVER.MAX_ITER", 2).train()
    evaluations(6.0, 7.0)
    resumed = scenes_trainer("run", *options)
    resumed.resume_or_load()
    resumed.train()
    assert resumed.iter == 3  # the best was after iteration 1, and 2, 3 and 4 were not better


def test_metric_that_there_is_not_is_told_with_those_that_there_are(scenes_trainer, evaluations):
    evaluations(10.0, name="AP50")
    trainer = scenes_trainer("run", *SOLVER, *EVALUATED, "TEST.BEST_METRIC", "bbox/AP5")
    with pytest.raises(ValueError, match=r"'bbox/AP5', .* one of bbox/AP, bbox/AP50$"):
        trainer.train()


@pytest.mark.parametrize(
    "metric, words",
    [
        ("bbox/AP5O", r"'bbox/AP5O'.*: did you mean bbox/AP50"),
        ("bbox/AP-nothing", "'bbox/AP-nothing'.* Results are AP, bbox/AP, bbox/AP50"),
        ("tiny_val/bbox/AP", "did you mean bbox/AP"),
        ("segm/AP", "'segm/AP'"),
        ("validation/total_loss", "it needs TEST.VALIDATION_LOSS True"),
    ],
)
def test_metric_is_checked_before_anything_is_made(scenes_trainer, tmp_path, metric, words):
    with pytest.raises(ValueError, match=words) as error:
        scenes_trainer("run", *EVALUATED, "TEST.BEST_METRIC", metric)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("metric", ["bbox/AP-{name}", "bbox/AR@100", "bbox/AP55"])
def test_metrics_that_there_will_be_are_accepted(scenes_trainer, metric):
    scenes_trainer("first", *EVALUATED)
    metric = metric.format(name=MetadataCatalog.get("tiny_val").thing_classes[-1])
    trainer = scenes_trainer("run", *EVALUATED, "TEST.BEST_METRIC", metric)
    assert trainer.best.metric == metric


def test_metric_of_a_trainer_with_an_evaluator_of_its_own_is_not_known(scenes_trainer):
    class Own(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name, output_folder=None):
            raise NotImplementedError

    cfg = scenes_trainer("run", *EVALUATED).cfg.clone()
    cfg.defrost()
    cfg.TEST.BEST_METRIC = "mine/figure"
    assert Own(cfg).best.metric == "mine/figure"
    with pytest.raises(ValueError, match="mine/figure"):
        Trainer(cfg)


def test_metric_values():
    results = {"a": {"bbox": {"AP": 1.0, "AP-cat": 2.0}}, "validation": {"total_loss": 3.0}}
    assert metric_value(results, "AP") == 1.0
    assert metric_value(results, "a/bbox/AP-cat") == 2.0
    assert metric_value(results, "validation/total_loss") == 3.0
    assert metric_value({}, "anything") != metric_value({}, "anything")  # NaN


def test_validation_loss_is_measured_and_changes_nothing(scenes_trainer, tmp_path, caplog):
    """The run's weights are those without it; the lowest loss is the best; the log has it."""
    options = [
        *EVALUATED, "TEST.EVAL_PERIOD", 2, "SOLVER.MAX_ITER", 4, "SOLVER.IMS_PER_BATCH", 2,
        "INPUT.MULTI_SCALE", "[64, 96]", "SEED", 1,
    ]  # fmt: skip
    caplog.set_level("INFO", logger="resobj_d2")
    scenes_trainer("without", *options).train()
    caplog.clear()
    extra = ["TEST.VALIDATION_LOSS", True, "TEST.BEST_METRIC", "validation/total_loss"]
    trainer = scenes_trainer("with", *options, *extra)
    results = trainer.train()
    plain, measured = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"]
        for name in ("without", "with")
    )
    assert all(torch.equal(plain[name], value) for name, value in measured.items())
    losses = results["validation"]
    terms = [value for name, value in losses.items() if name != "total_loss"]
    assert len(terms) >= 2 and sum(terms) == pytest.approx(losses["total_loss"])
    assert f"validation loss {losses['total_loss']:.4g} (" in caplog.text
    logged = [json.loads(line) for line in (tmp_path / "with/metrics.json").open()]
    curve = [row["validation/total_loss"] for row in logged if "validation/total_loss" in row]
    assert curve[-1] == losses["total_loss"]
    assert trainer.best.best.value == min(curve)
