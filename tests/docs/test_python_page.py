"""The code of docs/python.md runs from top to bottom in an empty folder."""

import re

import pytest
import torch


@pytest.fixture
def blocks(repository):
    return re.findall(r"```python\n(.*?)```", (repository / "docs/python.md").read_text(), re.S)


def test_the_notebook_takes_at_most_ten_lines(blocks):
    assert len([line for line in blocks[0].splitlines() if line]) <= 10
    assert {"get_config", "Trainer", "train()", "Predictor"} <= set(
        re.findall(r"get_config|Trainer|train\(\)|Predictor", blocks[0])
    )


@pytest.mark.slow
def test_the_code_runs(blocks, tmp_path, monkeypatch, capsys, clean_catalogs):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    # Fewer scenes and iterations; everything else is as printed.
    first = blocks[0].replace("SOLVER__MAX_ITER=200, SOLVER__STEPS=()", "**SMALL")
    assert first != blocks[0]
    splits = [
        {"name": f"scenes_{split}", "format": "scenes", "split": split, "image_size": 64,
         "num_train": 16, "num_val": 4}
        for split in ("train", "val")
    ]  # fmt: skip
    small = {
        "SOLVER__MAX_ITER": 2,
        "SOLVER__STEPS": (),
        "SOLVER__IMS_PER_BATCH": 2,
        "INPUT__MIN_SIZE_TRAIN": (64,),
        "INPUT__MIN_SIZE_TEST": 64,
        "MODEL__DEVICE": "cpu",
        "MODEL__DENSE__POSTPROCESS__SCORE_THRESH": 0.0,
        "DATALOADER__NUM_WORKERS": 0,
        "DATASETS__REGISTER": splits,
    }
    names = {"SMALL": small}
    exec(first, names)
    assert names["results"]["bbox"]["AP"] >= 0
    assert names["detections"].image_size == (64, 64) and len(names["detections"]) > 0
    before = names["detections"].scores
    assert (tmp_path / "output/scenes_retinanet_resobj_t2/model_final.pth").is_file()
    exec(blocks[1], names)
    detections = names["predictor"]("datasets/scenes/val/000001.png")
    assert torch.equal(detections.scores, before)
    assert set(names["results"]) == {"bbox"}
    exec(blocks[2], names)
    assert names["cfg"].MODEL.DENSE.OBJECTNESS.STEPS == 1
    exec(blocks[3], names)
    shapes = {name: value.shape for name, value in names["model"].state_dict().items()}
    exec(blocks[4], names)
    assert shapes == {name: value.shape for name, value in names["model"].state_dict().items()}
