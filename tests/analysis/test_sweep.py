"""A sweep equals separate evaluations, but takes one forward pass."""

import json

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from resobj_d2.analysis.sweep import main, sweep, table
from resobj_d2.config import load_config
from resobj_d2.engine import evaluate

ALPHA = "MODEL.DENSE.QUALITY.ALPHA"
THRESHOLD = "MODEL.DENSE.POSTPROCESS.SCORE_THRESH"


@pytest.fixture
def options(tiny_options, tmp_path, clean_catalogs):
    """A detector with random weights on six generated pictures, as KEY VALUE overrides."""
    scenes = [
        {"name": "sweep_val", "format": "scenes", "split": "val", "root": str(tmp_path),
         "image_size": 64, "num_train": 2, "num_val": 6}
    ]  # fmt: skip
    overrides = [
        *tiny_options,
        "MODEL.DENSE.NUM_CLASSES", "8",
        "MODEL.DENSE.QUALITY.ENABLED", "True",
        THRESHOLD, "0.0",
        "DATASETS.REGISTER", str(scenes),
        "DATASETS.TEST", "('sweep_val',)",
        "DATALOADER.NUM_WORKERS", "0",
        "INPUT.MIN_SIZE_TEST", "64",
    ]  # fmt: skip
    torch.manual_seed(0)
    model = build_model(load_config("", [*overrides, "DATASETS.TEST", "()"], training=False))
    for module in model.streams.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.2)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    return [*overrides, "MODEL.WEIGHTS", str(tmp_path / "model.pth")]


def test_sweep_equals_separate_evaluations(options):
    cfg = load_config("", options, training=False)
    rows = sweep(cfg, {ALPHA: ["0.0", "0.9"], "TEST.DETECTIONS_PER_IMAGE": ["5", "100"]})
    assert [list(row["settings"].values()) for row in rows] == [
        ["0.0", "5"], ["0.0", "100"], ["0.9", "5"], ["0.9", "100"],
    ]  # fmt: skip
    found = []
    for row in rows:
        opts = [x for pair in row["settings"].items() for x in pair]
        one = cfg.clone()
        one.defrost()
        one.merge_from_list(opts)
        expected = evaluate(one)
        assert row["results"]["sweep_val"]["bbox"] == pytest.approx(expected["bbox"], nan_ok=True)
        found.append(row["results"]["sweep_val"]["bbox"]["AP"])
    assert len(set(found)) > 1  # the settings matter


def test_command(options, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("VERSION: 2\n")
    output = tmp_path / "sweep.json"
    some, others = options[:4], options[4:]
    arguments = ["--config-file", str(config), *some, "--vary", THRESHOLD, "0.0", "0.9"]
    assert main([*arguments, "--json", str(output), "--opts", *others]) == 0
    printed = capsys.readouterr().out
    assert "| sweep_val | 0.9 | " in printed

    def refuse(name):
        raise AssertionError(f"{name} is no json")

    first, second = json.loads(output.read_text(), parse_constant=refuse)
    figures = [row["results"]["sweep_val"]["bbox"] for row in (first, second)]
    # Six pictures of 64 pixels have no large objects.
    assert figures[0]["APl"] is None and figures[0]["AP"] >= 0


def test_model_keeps_its_own_scoring(tiny_cfg, make_batch):
    torch.manual_seed(0)
    model = build_model(tiny_cfg(THRESHOLD, "0.0")).eval()
    own = model.scoring
    other = build_model(tiny_cfg(THRESHOLD, "0.999")).scoring
    batch = make_batch([(64, 64, 0)])
    seen = []

    class Observed(type(other.postprocess)):
        def __call__(self, *arguments):
            seen.append((model.postprocess, model.scoring.fusion))
            return super().__call__(*arguments)

    other.postprocess.__class__ = Observed
    strict, loose = model.detections_per_scoring(batch, [other, own])
    # Not even while it answers; other threads may use it.
    assert seen == [(own.postprocess, own.fusion)]
    assert len(strict[0]["instances"]) == 0 < len(loose[0]["instances"])
    assert model.postprocess is own.postprocess
    with torch.no_grad():
        assert torch.equal(model(batch)[0]["instances"].scores, loose[0]["instances"].scores)


def test_keys_that_change_the_predictions_are_refused(tiny_cfg):
    with pytest.raises(ValueError, match="MODEL.DENSE.OBJECTNESS.STEPS cannot be varied"):
        sweep(tiny_cfg(), {"MODEL.DENSE.OBJECTNESS.STEPS": ["1"]})


def test_missing_weights_and_values_are_refused(tiny_options, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("VERSION: 2\n")
    options = ["--opts", *tiny_options, "DATASETS.TEST", "()"]
    with pytest.raises(ValueError, match="set MODEL.WEIGHTS"):
        main(["--config-file", str(config), "--vary", ALPHA, "0.5", *options])
    with pytest.raises(SystemExit):
        main(["--config-file", str(config), "--vary", ALPHA])
    assert f"--vary {ALPHA} needs values" in capsys.readouterr().err


def test_weights_are_given_as_in_other_commands(options, tmp_path, monkeypatch, capsys):
    """Before the values of --vary, which take all that follows."""
    used = []
    monkeypatch.setattr("resobj_d2.analysis.sweep.sweep", lambda cfg, axes: used.append(cfg) or [])
    monkeypatch.setattr("resobj_d2.analysis.sweep.table", lambda rows: "")
    arguments = ["--config-file", "", "--weights", "mine.pth", *options, "--vary", ALPHA, "0.5"]
    assert main(arguments) == 0
    assert used[0].MODEL.WEIGHTS == "mine.pth"


def test_a_key_twice_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--config-file", "x.yaml", "--vary", ALPHA, "0.1", "--vary", ALPHA, "0.5"])
    assert "each key has one --vary" in capsys.readouterr().err


def test_data_without_annotations_are_refused_before_the_pass(
    tiny_options, tmp_path, clean_catalogs
):
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "open.json").write_text(json.dumps(content))
    entry = {"name": "open_test", "json": str(tmp_path / "open.json"), "images": str(tmp_path)}
    cfg = load_config(
        "",
        [*tiny_options, "DATASETS.REGISTER", str([entry]), "DATASETS.TEST", "('open_test',)",
         "MODEL.DENSE.NUM_CLASSES", "1", "MODEL.WEIGHTS", str(tmp_path / "none.pth")],
        training=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="'open_test' has no annotations: nothing can be judged"):
        sweep(cfg, {ALPHA: ["0.5"]})


def test_table_by_hand():
    rows = [
        {
            "settings": {ALPHA: "0.4"},
            "results": {"d": {"bbox": {"AP": 1.25, "AP50": 2.0, "AP75": 0.0}}},
        }
    ]
    assert table(rows).splitlines() == [
        "| dataset | ALPHA | AP | AP50 | AP75 |",
        "|---|---|---|---|---|",
        "| d | 0.4 | 1.2 | 2.0 | 0.0 |",
    ]
