import signal
import subprocess
import sys

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from torch import nn

from resobj_d2.checkpoint.checkpointer import (
    CheckpointError,
    ResObjCheckpointer,
    rename_retinanet_weights,
)


@pytest.fixture
def saved(tiny_cfg, tmp_path):
    """A checkpoint of a three-class detector."""
    ResObjCheckpointer(build_model(tiny_cfg()), str(tmp_path)).save("model", iteration=7)
    return tmp_path / "model.pth"


def test_names_of_detectron2_retinanet():
    names = [
        "head.cls_subnet.2.weight",
        "head.bbox_pred.bias",
        "backbone.bottom_up.stem.conv1.weight",
    ]
    assert list(rename_retinanet_weights(dict.fromkeys(names, 0))) == [
        "tower.cls.2.weight",
        "streams.anchors.stages.0.box.bias",
        "backbone.bottom_up.stem.conv1.weight",
    ]


def test_missing_file(tiny_cfg, tmp_path):
    with pytest.raises(FileNotFoundError, match="no_such.pth"):
        ResObjCheckpointer(build_model(tiny_cfg())).load(str(tmp_path / "no_such.pth"))


def test_run_that_is_killed_while_it_saves_keeps_the_last_checkpoint(tmp_path):
    """The same name is written again, as model_final.pth is by a run that goes on for longer."""
    code = f"""
import os, signal, torch
from torch import nn
from resobj_d2.checkpoint import ResObjCheckpointer

model = nn.Linear(10, 10)
checkpointer = ResObjCheckpointer(model, {str(tmp_path)!r})
with torch.no_grad():
    model.weight.fill_(1.0)
checkpointer.save("model_final", iteration=1)
write = torch.save

def half_of_it(content, file):
    write(content, file)
    file.truncate(500)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

torch.save = half_of_it
with torch.no_grad():
    model.weight.fill_(2.0)
checkpointer.save("model_final", iteration=2)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    model = nn.Linear(10, 10)
    checkpointer = ResObjCheckpointer(model, str(tmp_path))
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 1
    assert (model.weight == 1.0).all()
    checkpointer.save("model_final", iteration=3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["last_checkpoint", "model_final.pth"]
    assert checkpointer.last_saved == str(tmp_path / "model_final.pth")


@pytest.mark.parametrize("keep", [0, 100, 10_000])
def test_truncated_file(tiny_cfg, saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=f"model.pth.*{keep} bytes.*truncated"):
        ResObjCheckpointer(build_model(tiny_cfg())).load(str(saved))


def test_wrong_class_count_is_refused_for_evaluation_only(tiny_cfg, saved):
    model = build_model(tiny_cfg("MODEL.DENSE.NUM_CLASSES", 5))
    with pytest.raises(CheckpointError, match=r"stages.0.cls.weight: .*\(27,.*\(45,"):
        ResObjCheckpointer(model, strict=True).load(str(saved))
    before = model.streams["anchors"].stages[0].cls.weight.clone()
    ResObjCheckpointer(model).load(str(saved))  # fine-tuning: everything else is taken
    assert torch.equal(model.streams["anchors"].stages[0].cls.weight, before)
    expected = torch.load(saved)["model"]["tower.cls.0.weight"]
    assert torch.equal(model.tower.cls[0].weight, expected)


def test_another_method_is_refused_for_evaluation(tiny_resobj, saved):
    with pytest.raises(CheckpointError, match="objectness.*not in the checkpoint"):
        ResObjCheckpointer(build_model(tiny_resobj()), strict=True).load(str(saved))


def test_last_checkpoint_is_resumed(tiny_cfg, saved):
    model = build_model(tiny_cfg())
    extra = ResObjCheckpointer(model, str(saved.parent)).resume_or_load("", resume=True)
    assert extra["iteration"] == 7


def test_file_with_python_objects_says_so(tiny_cfg, tmp_path):
    torch.save({"model": {"tower.cls.0.weight": range(3)}, "when": range(2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="Python objects besides tensors"):
        ResObjCheckpointer(build_model(tiny_cfg())).load(str(tmp_path / "a.pth"))


def test_file_without_weights_is_refused(tiny_cfg, tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="list.pth.*holds a list"):
        ResObjCheckpointer(build_model(tiny_cfg())).load(str(tmp_path / "list.pth"))


def test_retinanet_saved_inside_ddp_is_renamed():
    assert list(rename_retinanet_weights({"module.head.cls_score.bias": 0})) == [
        "streams.anchors.stages.0.cls.bias"
    ]


def test_categories_travel_in_the_checkpoint(tiny_cfg, tmp_path):
    """Also for Detectron2's own checkpointer, and through torch's safe reader of files."""
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 11, "name": "Kuh ü"}]
    model = build_model(tiny_cfg())
    ResObjCheckpointer(model, str(tmp_path), categories=tuple(categories)).save("a", iteration=7)
    path = str(tmp_path / "a.pth")
    assert torch.load(path, weights_only=True)["categories"] == categories
    for checkpointer in (ResObjCheckpointer(model, strict=True), DetectionCheckpointer(model)):
        extra = checkpointer.load(path)
        assert extra["categories"] == categories and extra["iteration"] == 7


def test_checkpoint_without_categories_has_no_such_entry(tiny_cfg, saved):
    assert "categories" not in torch.load(saved, weights_only=True)
