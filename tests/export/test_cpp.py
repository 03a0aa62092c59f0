"""The C++ programs of docs/examples: compiled as they say, they find what Python finds."""

import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image

from resobj_d2 import ops
from resobj_d2.export import ExportableDetector, write_exported
from resobj_d2.export.metadata import describe
from resobj_d2.ops._native import library_path
from tests.export.test_detector import FLAT

pytestmark = pytest.mark.slow
ENVIRONMENT = {**os.environ, "TORCH": torch.__path__[0]}


@pytest.fixture(scope="module")
def compiled(repository, tmp_path_factory):
    """A function: the name of a program to its path."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    if ops.native_status()["cpu"] != "native":
        pytest.skip("the cpu kernels are not built")
    folder = tmp_path_factory.mktemp("cpp")

    def build(name):
        source = repository / f"docs/examples/cpp/{name}.cpp"
        shutil.copy(source, folder)
        command = re.search(r"^//   (c\+\+ .*?[^\\])$", source.read_text(), re.M | re.S)[1]
        # Not optimised, it is compiled in half the time.
        command = command.replace("\n//", "\n").replace("-O1", "-O0")
        subprocess.run(command, shell=True, cwd=folder, env=ENVIRONMENT, check=True)
        return folder / name

    return build


def run(program, *arguments):
    command = [str(x) for x in (program, *arguments)]
    return subprocess.run(command, env={}, capture_output=True, text=True)


def numbers(text):
    return [float(x) for x in text.split()]


def test_operators_are_called_without_python(compiled):
    result = run(compiled("operators"), library_path("cpu"))
    assert result.returncode == 0, result.stderr
    found = {k: numbers(v) for k, _, v in (x.partition(":") for x in result.stdout.splitlines())}
    boxes = torch.tensor([[0.0, 0, 4, 4], [1, 0, 5, 4], [8, 8, 9, 10]])
    scores, classes = torch.tensor([0.7, 0.9, 0.8]), torch.zeros(3, dtype=torch.int64)
    losses = ops.residual_objectness_bce(
        torch.tensor([[2.0, -1, 0], [0.5, -0.5, 1.5]]),
        torch.full((1, 2, 3), 0.25),
        torch.tensor([[1, 1, 0], [0, -1, 1]], dtype=torch.int8),
    )
    expected = {
        "giou": ops.pairwise_box_iou(boxes, boxes, "giou"),
        "kept": ops.batched_nms(boxes, scores, classes, 0.5),
        "losses": losses.losses,
        "counts": losses.counts,
        "thresholds": losses.thresholds,
    }
    assert found == {k: pytest.approx(v.flatten().tolist(), abs=1e-6) for k, v in expected.items()}
    assert found["kept"] == [1, 2]


@pytest.fixture(scope="module")
def detector(method_cfg, spread_out):
    one_level = ("MODEL.DENSE.IN_FEATURES", "['p4']", "TEST.DETECTIONS_PER_IMAGE", 30)
    cfg = method_cfg(opts=(*FLAT, *one_level, "INPUT.MIN_SIZE_TEST", 60))
    return ExportableDetector(spread_out(cfg), selection="nms"), cfg


@pytest.fixture(scope="module")
def package(detector, tmp_path_factory):
    """The detector as a compiled package. Without optimisation, which takes longest."""
    path = tmp_path_factory.mktemp("package") / "detector.pt2"
    metadata = describe(*detector, ["red cell", "platelet", "white cell"])
    with torch._inductor.config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):
        write_exported(detector[0], path, format="aoti", metadata=metadata)
    return path


def expected_lines(detector, cfg, pixels):
    """What the model finds in an RGB picture, (H, W, 3) uint8: rows of score, box and class."""
    shorter, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    resize = ResizeShortestEdge([shorter, shorter], longest).get_transform(pixels)
    height, width = resize.new_h, resize.new_w
    picture = torch.from_numpy(pixels).permute(2, 0, 1).flip(0)[None]  # BGR
    resized = torch.nn.functional.interpolate(
        picture, (height, width), mode="bilinear", antialias=True
    )
    images = torch.full((1, 3, -(-height // 32) * 32, -(-width // 32) * 32), 7, dtype=torch.uint8)
    images[:, :, :height, :width] = resized
    sizes = torch.tensor([[height, width]]), torch.tensor([pixels.shape[:2]])
    with torch.no_grad():
        boxes, scores, classes, counts = detector(images, *sizes)
    count = int(counts[0])
    return scores[0, :count], boxes[0, :count], classes[0, :count]


def test_a_package_finds_in_a_picture_what_the_model_finds(compiled, detector, package, tmp_path):
    program = compiled("detect")
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.ppm")
    result = run(program, library_path("cpu"), package, tmp_path / "a.ppm")
    assert result.returncode == 0, result.stderr
    rows = [line.split(" ", 5) for line in result.stdout.splitlines()]
    scores, boxes, classes = expected_lines(*detector, pixels)
    assert len(rows) == len(scores) > 3
    found = torch.tensor([[float(x) for x in row[:5]] for row in rows])
    assert torch.allclose(found[:, 0], scores, atol=1e-5)
    assert torch.allclose(found[:, 1:], boxes, atol=1e-3)
    names = ["red cell", "platelet", "white cell"]
    assert [row[5] for row in rows] == [names[i] for i in classes]

    limit = (scores[1] + scores[2]).item() / 2
    best = run(program, library_path("cpu"), package, tmp_path / "a.ppm", limit)
    assert best.stdout.splitlines() == result.stdout.splitlines()[:2]

    (tmp_path / "cut.ppm").write_bytes((tmp_path / "a.ppm").read_bytes()[:-1])
    (tmp_path / "grey.ppm").write_bytes(b"P5 2 2 255 abcd")
    for *files, message in (
        (package, "cut.ppm", "cut.ppm is cut off"),
        (package, "grey.ppm", "grey.ppm is not a binary PPM"),
        (package, "none.ppm", "cannot read"),
        (tmp_path / "none.pt2", "a.ppm", "cannot read"),
    ):
        wrong = run(program, library_path("cpu"), files[0], tmp_path / files[1])
        assert wrong.returncode == 1 and wrong.stdout == ""
        assert wrong.stderr.startswith("error: ") and message in wrong.stderr
