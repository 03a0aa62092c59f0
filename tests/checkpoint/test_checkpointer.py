import logging
import os
import pickle
import signal
import sys
import zipfile

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from torch import nn

from resobj_d2 import __version__
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


def test_run_that_is_killed_while_it_saves_keeps_the_last_checkpoint(tmp_path, warm_python):
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
    assert warm_python.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
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
    with pytest.raises(CheckpointError, match="tensors are not in the checkpoint .*objectness"):
        ResObjCheckpointer(build_model(tiny_resobj()), strict=True).load(str(saved))


def test_last_checkpoint_is_resumed(tiny_cfg, saved):
    model = build_model(tiny_cfg())
    extra = ResObjCheckpointer(model, str(saved.parent)).resume_or_load("", resume=True)
    assert extra["iteration"] == 7


def states(model, value):
    """Checkpoints of one small model whose weights are ``value``."""
    with torch.no_grad():
        model.weight.fill_(value)


@pytest.fixture
def run(tmp_path):
    """A folder with the checkpoints of iterations 1, 2, 3 and the best; weights say which."""
    model = nn.Linear(4, 4)
    checkpointer = ResObjCheckpointer(model, str(tmp_path))
    for iteration in (1, 2, 3):
        states(model, iteration)
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        os.utime(tmp_path / f"model_{iteration:07d}.pth", (iteration, iteration))
    torch.save({"model": model.state_dict(), "AP": 1.0}, tmp_path / "model_best.pth")
    torch.save({"batch": []}, tmp_path / "nonfinite_batch_rank0.pth")
    return tmp_path


def resumed(folder):
    model = nn.Linear(4, 4)
    states(model, -1)
    checkpointer = ResObjCheckpointer(model, str(folder))
    assert checkpointer.has_checkpoint()
    iteration = checkpointer.resume_or_load("", resume=True)["iteration"]
    assert (model.weight == iteration).all()
    return iteration


@pytest.mark.parametrize(
    "tag, message",
    [
        (b"", "is empty"),
        (b"\xff\xfe\x00garbage\x00", "is not in its folder"),
        (b"model_0000099.pth", "names 'model_0000099.pth', which is not in its folder"),
        (b"../elsewhere.pth", "names '../elsewhere.pth', which is not in its folder"),
        (None, ""),
    ],
)
def test_a_damaged_last_checkpoint_falls_back_to_the_newest(run, tag, message, caplog):
    (run.parent / "elsewhere.pth").write_bytes((run / "model_0000001.pth").read_bytes())
    (run / "last_checkpoint").unlink()
    if tag is not None:
        (run / "last_checkpoint").write_bytes(tag)
    with caplog.at_level(logging.WARNING):
        assert resumed(run) == 3
    assert caplog.text.count("the newest checkpoint there is used") == (tag is not None)
    assert message in caplog.text


def test_last_checkpoint_is_believed_before_the_newest(run):
    (run / "last_checkpoint").write_text("model_0000002.pth\n")
    assert resumed(run) == 2


@pytest.mark.parametrize("tag", [None, "model_0000099.pth"])
def test_weights_from_elsewhere_are_not_resumed(run, tag):
    """By their name, however new they are."""
    (run / "last_checkpoint").unlink()
    if tag:
        (run / "last_checkpoint").write_text(tag)
    weights = nn.Linear(4, 4).state_dict()
    for name in ("zoo", "average", "final_run2", "best.old", "000005", "0000007a"):
        torch.save({"model": weights, "iteration": 9}, run / f"model_{name}.pth")
    assert resumed(run) == 3
    for path in run.glob("model_000000[123].pth"):
        path.unlink()
    checkpointer = ResObjCheckpointer(nn.Linear(4, 4), str(run))
    assert not checkpointer.has_checkpoint() and checkpointer.get_checkpoint_file() == ""


@pytest.mark.parametrize(
    "content, names",
    [
        (["model_0000003.pth", "../model_0000004.pth", "log.txt", 7], ["model_0000003.pth"]),
        (5, []),
        (None, []),
    ],
)
def test_resumed_run_knows_what_was_written(tmp_path, content, names):
    """And takes nothing else for it: these names are those of files that it may remove."""
    state = {"model": nn.Linear(4, 4).state_dict(), "iteration": 3, "written": content}
    torch.save(state, tmp_path / "model_0000003.pth")
    checkpointer = ResObjCheckpointer(nn.Linear(4, 4), str(tmp_path))
    checkpointer.resume_or_load("", resume=True)
    assert checkpointer.written == names


def test_checkpoint_without_iteration_is_of_no_run(run, caplog):
    (run / "last_checkpoint").unlink()
    torch.save({"model": nn.Linear(4, 4).state_dict()}, run / "model_final.pth")
    with caplog.at_level(logging.WARNING):
        assert resumed(run) == 3
    assert "model_final.pth has no iteration to go on from" in caplog.text
    for path in run.glob("model_000000[123].pth"):
        path.unlink()
    with pytest.raises(CheckpointError, match="nothing to resume from: .*set MODEL.WEIGHTS"):
        ResObjCheckpointer(nn.Linear(4, 4), str(run)).resume_or_load("", resume=True)


def damage(path, how):
    data = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(data[:-100])
    elif how == "one bit":
        position = data.index(torch.full((4, 4), 3.0).numpy().tobytes())
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
    else:
        path.write_bytes(b"no checkpoint" * 100)
    os.utime(path, (3, 3))


@pytest.mark.parametrize("how", ["empty", "cut", "one bit", "text"])
def test_a_damaged_checkpoint_falls_back_to_the_newest_that_can_be_read(run, how, caplog):
    damage(run / "model_0000003.pth", how)
    with caplog.at_level(logging.WARNING):
        assert resumed(run) == 2
    assert caplog.text.count("model_0000002.pth is used") == 1
    assert "model_0000003.pth" in caplog.text


def test_where_nothing_can_be_read_nothing_starts_anew(run):
    for path in run.glob("model_0*.pth"):
        damage(path, "empty")
    checkpointer = ResObjCheckpointer(nn.Linear(4, 4), str(run))
    assert checkpointer.has_checkpoint()
    with pytest.raises(CheckpointError, match="nothing to resume from: .*model_0000001.pth"):
        checkpointer.resume_or_load("", resume=True)


def test_a_folder_without_checkpoints_has_none(tmp_path):
    torch.save({"model": {}}, tmp_path / "model_best.pth")
    checkpointer = ResObjCheckpointer(nn.Linear(4, 4), str(tmp_path))
    assert not checkpointer.has_checkpoint() and checkpointer.get_checkpoint_file() == ""
    assert checkpointer.resume_or_load("", resume=True) == {}
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    assert not checkpointer.has_checkpoint()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, value, caplog):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        model[0].weight[2, 3] = value
        model[1].running_var[0] = value
    ResObjCheckpointer(model, str(tmp_path)).save("a")
    path = str(tmp_path / "a.pth")
    fresh = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(CheckpointError, match="in 2 tensors, the first is 0.weight: .*diverged"):
        ResObjCheckpointer(fresh, strict=True).load(path)
    fresh = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with caplog.at_level(logging.WARNING):
        ResObjCheckpointer(fresh).load(path)
    assert "the first is 0.weight" in caplog.text


def test_input_and_version_travel_in_the_checkpoint(tiny_cfg, tmp_path, caplog):
    cfg = tiny_cfg("INPUT.MIN_SIZE_TEST", "320", "INPUT.FORMAT", "RGB")
    model = build_model(cfg)
    ResObjCheckpointer(model, str(tmp_path), cfg=cfg).save("a")
    path = str(tmp_path / "a.pth")
    stored = torch.load(path, weights_only=True)["about"]
    assert stored["version"] == __version__
    assert stored["config"]["INPUT.FORMAT"] == "RGB"
    assert stored["config"]["INPUT.MIN_SIZE_TEST"] == 320
    assert stored["config"]["MODEL.PIXEL_MEAN"] == list(cfg.MODEL.PIXEL_MEAN)
    DetectionCheckpointer(model).load(path)
    with caplog.at_level(logging.WARNING):
        ResObjCheckpointer(model, strict=True, cfg=cfg).load(path)
        assert not caplog.text
        other = tiny_cfg("INPUT.FORMAT", "RGB")
        ResObjCheckpointer(model, strict=True, cfg=other).load(path)
    assert "other sizes of images: INPUT.MIN_SIZE_TEST 320, here 800" in caplog.text
    for opts in (["INPUT.FORMAT", "BGR"], ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_STD", "[2,2,2]"]):
        other = tiny_cfg("INPUT.MIN_SIZE_TEST", "320", *opts)
        with pytest.raises(CheckpointError, match=f"on other pixels: {opts[-2]} .*, here"):
            ResObjCheckpointer(model, strict=True, cfg=other).load(path)
        caplog.clear()
        ResObjCheckpointer(model, cfg=other).load(path)  # fine-tuning
        assert f"on other pixels: {opts[-2]}" in caplog.text


@pytest.mark.parametrize("about", [None, 3, "x", [], {"config": 5}, {"config": {"INPUT": [{}]}}])
def test_what_other_programs_keep_there_does_no_harm(tiny_cfg, tmp_path, about):
    cfg = tiny_cfg()
    model = build_model(cfg)
    state = {"model": model.state_dict(), "about": about, "categories": about}
    torch.save(state, tmp_path / "a.pth")
    ResObjCheckpointer(model, strict=True, cfg=cfg).load(str(tmp_path / "a.pth"))


def test_other_classes_than_those_trained_for_are_said(tmp_path, caplog):
    model = nn.Linear(4, 4)
    classes = [{"id": i, "name": name} for i, name in enumerate(("cat", "dog"))]
    ResObjCheckpointer(model, str(tmp_path), categories=classes).save("a")
    with caplog.at_level(logging.WARNING):
        ResObjCheckpointer(model, categories=classes).load(str(tmp_path / "a.pth"))
        assert not caplog.text
        ResObjCheckpointer(model, categories=classes[::-1]).load(str(tmp_path / "a.pth"))
    assert "trained for the classes cat, dog; now they are dog, cat" in caplog.text


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_kind_of_checkpoint_runs_what_it_holds(tmp_path):
    harm = tmp_path / "harm"
    content = {"model": {"weight": Harm(harm)}, "__author__": "x"}
    files = [tmp_path / name for name in ("a.pth", "b.pth", "c.pkl", "d.pth", "e.pyth")]
    torch.save(content, files[0])
    torch.save(content, files[1], _use_new_zipfile_serialization=False)
    for path in files[2:]:
        path.write_bytes(pickle.dumps(content, 2))
    for path in files:
        with pytest.raises(CheckpointError, match=path.name) as error:
            ResObjCheckpointer(nn.Linear(2, 2)).load(str(path))
        assert "\n" not in str(error.value) and "mkdir" in str(error.value)
    assert not harm.exists()


def test_pickles_of_the_model_zoo_are_read(tmp_path):
    weights = {"weight": np.full((4, 4), 2.0, np.float32), "bias": np.ones(4, np.float32)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": weights, "__author__": "zoo"}))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"blobs": {**weights, "bias_momentum": 3}}))
    for name in "ab":
        model = nn.Linear(4, 4)
        ResObjCheckpointer(model, strict=True).load(str(tmp_path / f"{name}.pkl"))
        assert (model.weight == 2).all() and (model.bias == 1).all()
    (tmp_path / "c.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(CheckpointError, match="c.pkl holds a list, not weights"):
        ResObjCheckpointer(nn.Linear(4, 4)).load(str(tmp_path / "c.pkl"))


def test_safetensors_are_read_where_the_package_is_there(tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.torch")
    weights = {"weight": torch.full((4, 4), 2.0), "bias": torch.ones(4)}
    path = tmp_path / "a.safetensors"
    safetensors.save_file(weights, path)
    model = nn.Linear(4, 4)
    ResObjCheckpointer(model, strict=True).load(str(path))
    assert torch.equal(model.weight, weights["weight"])
    for content in (b"", path.read_bytes()[:-8], b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="a.safetensors is damaged"):
            ResObjCheckpointer(nn.Linear(4, 4)).load(str(path))
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(CheckpointError, match="a.safetensors: pip install safetensors"):
        ResObjCheckpointer(nn.Linear(4, 4)).load(str(path))


def test_a_compressed_checkpoint_is_refused_before_it_fills_the_memory(tmp_path):
    torch.save({"model": {"weight": torch.zeros(4, 4)}}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry))
    with pytest.raises(CheckpointError, match="bomb.pth is compressed"):
        ResObjCheckpointer(nn.Linear(4, 4)).load(str(tmp_path / "bomb.pth"))


def test_programs_are_no_checkpoints(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="a.pth is a program of TorchScript"):
        ResObjCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "a.pth"))


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
