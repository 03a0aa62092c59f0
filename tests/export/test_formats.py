"""Files of torch's own formats find what the model finds, at sizes other than the traced one."""

import time

import pytest
import torch

from resobj_d2.export import FORMATS, ExportableDetector, load_exported, write_exported
from resobj_d2.export.check import compare
from resobj_d2.export.command import main
from resobj_d2.export.program import traced_module
from tests.export.test_detector import FAMILIES, FLAT

SIZES = ([(32, 32)], [(64, 96)], [(200, 30)], [(70, 130), (96, 40), (33, 65)])
TWO_LEVELS = ("MODEL.DENSE.IN_FEATURES", "['p4', 'p6']")


def agree(model, path, format, pictures, sizes=SIZES):
    loaded = load_exported(path, format=format)
    detector = ExportableDetector(model, selection=FORMATS[format].selection)
    found = []
    for batch in sizes:
        for parity in compare(model, loaded, pictures(batch), detector=detector):
            assert parity.holds, (batch, parity)
            found.append(parity.found)
    assert len(set(found)) > 2, "the numbers of boxes should differ"
    return loaded


@pytest.mark.parametrize("family", FAMILIES)
def test_torchscript(family, method_cfg, spread_out, pictures, tmp_path):
    model = spread_out(method_cfg(*FAMILIES[family], opts=FLAT))
    unit = model.backbone.size_divisibility
    path = tmp_path / "model.pt"
    write_exported(ExportableDetector(model), path, format="torchscript", metadata={"a": [1]})
    sizes = [[(unit, unit)], *SIZES[1:]]
    assert agree(model, path, "torchscript", pictures, sizes).metadata == {"a": [1]}


@pytest.mark.parametrize("channels_last", [False, True])
def test_pt2(channels_last, method_cfg, spread_out, pictures, tmp_path):
    options = (*FLAT, *TWO_LEVELS, "MODEL.CHANNELS_LAST", channels_last)
    model = spread_out(method_cfg("retinanet_resobj", opts=options))
    path = tmp_path / "model.pt2"
    write_exported(ExportableDetector(model), path, format="pt2", metadata={"a": [1]})
    assert agree(model, path, "pt2", pictures).metadata == {"a": [1]}


class Branching(torch.nn.Module):
    """Has one graph for pictures of more than five cells, and another for smaller ones."""

    def forward(self, images, image_sizes, original_sizes):
        cells = images.shape[2] // 32 * (images.shape[3] // 32)
        return images.amax(dim=(1, 2, 3)) if cells > 5 else images.sum(), image_sizes


def test_pictures_too_small_for_a_graph_are_refused_with_a_size_to_pad_to(tmp_path):
    height, width = (torch.export.Dim(name, min=1) for name in ("height", "width"))
    sizes = torch.tensor([[96, 160], [96, 160]])
    inputs = torch.zeros(2, 3, 96, 160), sizes, sizes
    shapes = {2: 32 * height, 3: 32 * width}, None, None
    program = torch.export.export(Branching(), inputs, dynamic_shapes=shapes, strict=True)
    torch.export.save(program, tmp_path / "a.pt2")
    loaded = load_exported(tmp_path / "a.pt2", format="pt2")
    assert len(loaded(torch.zeros(2, 3, 96, 96), sizes, sizes)) == 2
    with pytest.raises(ValueError, match=r"images of 2x3x32x64, but for 2x3x64x128: pad them to"):
        loaded(torch.zeros(2, 3, 32, 64), sizes, sizes)


def test_a_trace_that_keeps_a_size_is_refused(method_cfg, spread_out, monkeypatch):
    detector = ExportableDetector(spread_out(method_cfg()))
    priors = detector.model.streams["anchors"].priors
    make = type(priors)._level
    monkeypatch.setattr(
        type(priors), "_level", lambda self, level, h, w: make(self, level, int(h), int(w))
    )
    with pytest.raises(ValueError, match="wrong for pictures of another size than .384, 640.: use"):
        traced_module(detector)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--format", "pt2", "--output", "a.pt"], "must be called *.pt2, got a.pt"),
        (["--format", "torchscript", "--output", "none/a.pt"], "none/a.pt cannot be written"),
        (["--format", "pt2", "--output", "a.pt2", "--check", "no.png"], "no image found: "),
        (["--format", "pt2", "--output", "a.pt2"], "MODEL.WEIGHTS is empty"),
        (["--format", "pt2", "--output", "a.pt2", "--time"], "--time needs pictures"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_a_line(arguments, message, tiny_cfg, tmp_path, monkeypatch, capsys):
    from resobj_d2.command import run_command

    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(tiny_cfg().dump())
    status = run_command(main, ["--config-file", "config.yaml", *arguments], uses_operators=False)
    *_, line = capsys.readouterr().err.splitlines()
    assert status == 2 and line.startswith("error: ") and message in line
    assert not [x for x in tmp_path.iterdir() if x.suffix != ".yaml"]


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match="the format onnx needs onnx and onnxscript and"):
        load_exported(tmp_path / "a.onnx", format="onnx")


def test_float_pictures_are_taken_too(method_cfg, spread_out, pictures):
    detector = ExportableDetector(spread_out(method_cfg(opts=FLAT)))
    from resobj_d2.export.check import as_batch

    images, *sizes = as_batch(pictures([(64, 64)]), 32)
    for a, b in zip(detector(images, *sizes), detector(images.double(), *sizes), strict=True):
        assert torch.equal(a, b)


def test_time_is_that_of_a_picture(method_cfg, spread_out, picture_files, monkeypatch):
    from resobj_d2.export import command
    from resobj_d2.inference import Predictor

    cfg = method_cfg(opts=FLAT)
    model = spread_out(cfg)
    detector = ExportableDetector(model)

    def file(*batch):
        time.sleep(0.05)
        return detector(*batch)

    monkeypatch.setattr(command, "load_exported", lambda path, *, format: file)
    of_file, of_model = command.time_file(
        Predictor(cfg, model), detector, "a.onnx", picture_files[:2], format="onnx"
    )
    assert of_file >= 0.05 and of_model > 0
