"""The Python code of docs/prediction.md runs on a small detector."""

import importlib.util
import re

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from resobj_d2.checkpoint import ResObjCheckpointer

NEEDS = {"import supervision": "supervision", "from sahi": "sahi"}


@pytest.fixture
def blocks(repository):
    text = (repository / "docs/prediction.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.S)


@pytest.fixture
def folder(tiny_resobj, tmp_path, monkeypatch):
    """The working directory, with the page's config, checkpoint and photo."""
    monkeypatch.chdir(tmp_path)
    cfg = tiny_resobj(
        *("INPUT.MIN_SIZE_TEST", "96", "MODEL.DENSE.POSTPROCESS.SCORE_THRESH", "0.0"),
        *("DATASETS.TRAIN", "()", "DATASETS.TEST", "()"),
    )
    torch.manual_seed(0)
    categories = [{"id": i, "name": name} for i, name in enumerate(("cat", "dog", "cow"))]
    model = build_model(cfg)
    for name, parameter in model.named_parameters():
        if "predictor" in name or "stages.0.cls" in name:  # so that some scores are high
            torch.nn.init.normal_(parameter, std=0.5)
    ResObjCheckpointer(model, ".", categories=categories).save("model_final")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    return tmp_path


def test_the_page_runs(blocks, folder, capsys):
    variables = {}
    ran = 0
    for code in blocks:
        packages = [package for line, package in NEEDS.items() if line in code]
        if all(importlib.util.find_spec(package) for package in packages):
            exec(code, variables)
            ran += 1
    assert ran >= 3
    detections = variables["detections"]
    assert len(detections) == 100 and detections.image_size == (60, 80)
    assert torch.equal(variables["same"].scores, detections.scores)
    assert [torch.equal(x.scores, detections.scores) for x in variables["several"]] == [True] * 3
    printed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert sum(printed.count(name) for name in ("cat", "dog", "cow")) == 100
    if "found" in variables:
        assert len(variables["found"].data["class_name"]) == 100
    if "result" in variables:
        names = {x.category.name for x in variables["result"].object_prediction_list}
        assert names and names <= {"cat", "dog", "cow"}
