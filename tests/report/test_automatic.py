"""An evaluation ends with a report, unless it is switched off, and never fails by it."""

import sys

import pytest
import torch
from detectron2.modeling import build_model

from resobj_d2.cli import train
from resobj_d2.config import load_config
from resobj_d2.process import start_log
from resobj_d2.report.automatic import report_evaluation


@pytest.fixture
def arguments(tiny_cfg, tmp_path, clean_catalogs):
    """Of `eval`, with a detector with random weights on three generated pictures."""
    cfg = tiny_cfg(
        "MODEL.DENSE.NUM_CLASSES", "8", "MODEL.DENSE.POSTPROCESS.SCORE_THRESH", "0.0"
    )  # fmt: skip
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    scenes = [
        {"name": "report_val", "format": "scenes", "split": "val", "root": str(tmp_path / "data"),
         "image_size": 64, "num_train": 2, "num_val": 3}
    ]  # fmt: skip
    options = [
        "DATASETS.REGISTER", str(scenes),
        "DATASETS.TEST", "('report_val',)",
        "DATALOADER.NUM_WORKERS", "0",
        "INPUT.MIN_SIZE_TEST", "64",
        "MODEL.WEIGHTS", str(tmp_path / "model.pth"),
        "OUTPUT_DIR", str(tmp_path / "run"),
    ]  # fmt: skip
    return [str(tmp_path / "config.yaml"), options]


def test_eval_ends_with_a_report(arguments, tmp_path, capsys):
    config, options = arguments
    assert train.main(["--eval-only", "--config-file", config, *options]) == 0
    page = tmp_path / "run" / "report.html"
    assert f"report           {page}" in capsys.readouterr().out
    text = page.read_text()
    assert "<title>run</title>" in text and "3 images" in text

    page.unlink()
    cfg = load_config(config, [*options, "TEST.REPORT", "False"], training=False)
    assert report_evaluation(cfg) == [] and not page.exists()

    (results,) = (tmp_path / "run").glob("inference/*/coco_instances_results.json")
    results.write_text("[{]")
    cfg = load_config(config, options, training=False)
    assert report_evaluation(cfg) == [] and not page.exists()
    assert "warning: the report on 'report_val' was not written:" in capsys.readouterr().out


def test_a_package_that_changed_meanwhile_fails_no_training(monkeypatch, tiny_cfg, capsys):
    monkeypatch.setitem(sys.modules, "resobj_d2.report.automatic", None)
    start_log()
    train._report(tiny_cfg(), {"bbox": {"AP": 1.0}})
    assert "warning: the report was not written: import of" in capsys.readouterr().out
