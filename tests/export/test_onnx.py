"""``resobj-d2 export --format onnx``, whose file onnxruntime runs."""

import json
import os
from types import SimpleNamespace

import pytest
import torch

onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX needs the extra 'export'")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from resobj_d2.checkpoint import ResObjCheckpointer  # noqa: E402
from resobj_d2.export import ExportableDetector, formats, load_exported  # noqa: E402
from resobj_d2.export.check import compare  # noqa: E402
from resobj_d2.export.command import main  # noqa: E402

SMALL = (
    "MODEL.DENSE.IN_FEATURES", "['p4', 'p6']",
    "MODEL.DENSE.POSTPROCESS.SCORE_THRESH", "0.3",
    "INPUT.MIN_SIZE_TEST", "64",
    "INPUT.MAX_SIZE_TEST", "128",
)  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory, method_cfg, spread_out, picture_files):
    """Config, model and the file that the command wrote, which has checked it."""
    folder = tmp_path_factory.mktemp("onnx")
    cfg = method_cfg("retinanet_resobj", opts=SMALL)
    model = spread_out(cfg)
    ResObjCheckpointer(model, str(folder)).save("model")
    (folder / "config.yaml").write_text(cfg.dump())
    arguments = ["--config-file", str(folder / "config.yaml")]
    arguments += ["--weights", str(folder / "model.pth"), "--format", "onnx"]
    arguments += ["--output", str(folder / "model.onnx"), "--check", *picture_files]
    assert main(arguments) == 0
    return model, folder / "model.onnx"


def test_the_file_finds_what_the_model_finds_at_any_size(exported, pictures):
    model, path = exported
    loaded = load_exported(path, format="onnx")
    detector = ExportableDetector(model, selection="onnx")
    found = []
    for sizes in ([(32, 32)], [(64, 96)], [(200, 30)], [(70, 130), (96, 40), (33, 65)]):
        for parity in compare(model, loaded, pictures(sizes), detector=detector):
            assert parity.holds, parity
            found.append(parity.found)
    assert max(found) > 5


def test_a_difference_is_told(exported, pictures):
    """The model is changed after its export."""
    model, path = exported
    loaded = load_exported(path, format="onnx")
    detector = ExportableDetector(model, selection="onnx")
    bias = model.streams["anchors"].stages[0].cls.bias
    bias.data += 0.05
    try:
        (parity,) = compare(model, loaded, pictures([(96, 96)]), detector=detector)
    finally:
        bias.data -= 0.05
    assert not parity.holds and parity.score > 1e-3


def test_the_file_has_standard_operators_and_says_what_it_is(exported):
    _, path = exported
    file = onnx.load(path)
    onnx.checker.check_model(file)
    assert [(x.domain, x.version) for x in file.opset_import if x.domain == ""] == [("", 20)]
    assert {node.domain for node in file.graph.node} == {""}
    assert not file.functions
    described = json.loads({x.key: x.value for x in file.metadata_props}["resobj_d2"])
    assert described["channels"] == "BGR" and described["size_divisibility"] == 32
    assert described["shorter_side"] == 64 and described["longest_side"] == 128
    assert described["score_threshold"] == 0.3 and described["max_detections"] == 100
    assert [x.name for x in file.graph.input] == ["images", "image_sizes", "original_sizes"]
    assert [x.name for x in file.graph.output] == ["boxes", "scores", "classes", "counts"]


def test_a_failed_export_leaves_the_old_file(exported, tmp_path, monkeypatch):
    _, path = exported

    class FullDisk:
        metadata_props = onnx.ModelProto().metadata_props

        def SerializeToString(self):
            raise OSError("no space left on device")

    program = SimpleNamespace(model_proto=FullDisk())
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: program)
    monkeypatch.setattr(formats, "exported_program", lambda *args, **kwargs: None)
    old, names = path.read_bytes(), sorted(os.listdir(path.parent))
    with pytest.raises(OSError, match="no space"):
        main(
            ["--config-file", str(path.parent / "config.yaml"), "--format", "onnx"]
            + ["--output", str(path), "MODEL.WEIGHTS", str(path.parent / "model.pth")]
        )
    assert path.read_bytes() == old and sorted(os.listdir(path.parent)) == names


@pytest.mark.parametrize(
    "key, value",
    [("PREDICT.SCORE_THRESH", "[0.4]"), ("PREDICT.TILE", "64"), ("TEST.AUG.ENABLED", "True")],
)
def test_what_an_exported_file_does_not_hold_is_refused(exported, key, value):
    _, path = exported
    arguments = ["--config-file", str(path.parent / "config.yaml"), "--format", "onnx"]
    arguments += ["--output", str(path.parent / "other.onnx"), key, value]
    with pytest.raises(ValueError, match=f"^{key}: not part of an exported file"):
        main([*arguments, "MODEL.WEIGHTS", str(path.parent / "model.pth")])
    assert not (path.parent / "other.onnx").exists()


def test_a_file_has_as_many_threads_as_torch(exported, monkeypatch):
    *_, path = exported
    made = []
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda *args, **kwargs: made.append(session(*args, **kwargs)) or made[-1],
    )
    load_exported(path, format="onnx")
    (only,) = made
    assert only.get_session_options().intra_op_num_threads == torch.get_num_threads()
