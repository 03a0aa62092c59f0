"""Detectors of all families train on two processes, resume and predict.

What they do goes through the commands' ``main``; that these start as users start them is shown by
``test_train_net.py``. All families share the processes, since to start one takes longer.
"""

import json
import sys

import pytest

from resobj_d2.cli.train import main as train
from resobj_d2.inference.predict import main as predict
from resobj_d2.launch import launch

pytestmark = pytest.mark.slow

SSD = [
    "INPUT.FIXED_SIZE", "[64, 96]",
    "MODEL.DENSE.NUM_CLASSES", "8",
    "SOLVER.STEPS", "()",
]  # fmt: skip
YOLOV3 = [
    "INPUT.FIXED_SIZE", "[64, 64]",
    "INPUT.MULTI_SCALE", "[64, 96]",
    "INPUT.MULTI_SCALE_PERIOD", "1",
    "SOLVER.STEPS", "()",
    "SOLVER.WARMUP_METHOD", "power4",
    "SOLVER.WARMUP_ITERS", "4",
    "MODEL.DENSE.NUM_CLASSES", "8",
    "MODEL.DENSE.POSTPROCESS.SCORE_THRESH", "0.0",
]  # fmt: skip
EFFICIENTDET = [
    "INPUT.FIXED_SIZE", "[64, 64]",
    "MODEL.DENSE.NUM_CLASSES", "8",
    "MODEL.DENSE.POSTPROCESS.SCORE_THRESH", "0.0",
]  # fmt: skip
LIBRA_RCNN = [
    "SOLVER.STEPS", "()",
    "MODEL.FPN.OUT_CHANNELS", "64",
    "MODEL.ROI_HEADS.NUM_CLASSES", "8",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
    "MODEL.RESOBJ_ROI.QUALITY.ENABLED", "True",
]  # fmt: skip
# Families that are no RetinaNet: a yaml and what it needs besides, to learn scenes of 64 pixels.
FAMILIES = {
    "ssd": ("overfit_ssd", SSD),
    "yolov3": ("overfit_yolov3", YOLOV3),
    "efficientdet": ("overfit_efficientdet", EFFICIENTDET),
    "libra_rcnn": ("cells_libra_rcnn", LIBRA_RCNN),
}

RCNN = [
    "SOLVER.STEPS", "()",
    "SOLVER.CHECKPOINT_PERIOD", "3",
    "MODEL.FPN.OUT_CHANNELS", "64",
    "MODEL.ROI_HEADS.NUM_CLASSES", "8",
]  # fmt: skip
STOCK = [
    *RCNN,
    "MODEL.PROPOSAL_GENERATOR.NAME", "RPN",
    "MODEL.RPN.HEAD_NAME", "StandardRPNHead",
    "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
]  # fmt: skip


def train_each(commands):
    """In each of two processes."""
    for arguments in commands:
        train(arguments)


def run_all(file):
    """All commands; called in a process of its own."""
    with open(file) as text:
        jobs = json.load(text)
    launch(train_each, num_processes=2, dist_url="auto", args=(jobs["together"],))
    for arguments in jobs["alone"]:
        train(arguments)
    for arguments in jobs["predict"]:
        assert predict(arguments) == 0


@pytest.fixture(scope="module")
def folder(repository, tmp_path_factory, train_arguments, warm_python):
    """What all detectors wrote, each to a folder of its name."""
    root = tmp_path_factory.mktemp("families")
    jobs = {"together": [], "alone": [], "predict": []}

    def add(kind, name, config, options, iterations, *flags):
        opts = [*options, "SOLVER.MAX_ITER", iterations]
        arguments = train_arguments(root, root / name, *opts, flags=flags, config=config)
        jobs[kind].append(arguments)

    for name, (config, options) in FAMILIES.items():
        add("together", name, config, options, 3)
        add("alone", name, config, options, 5, "--resume")
        jobs["predict"].append(
            [
                "--input", str(root / "scenes/val"), "--output", str(root / name / "found"),
                "--config-file", str(repository / f"configs/small/{config}.yaml"), *options,
                "DATASETS.TEST", "()", "MODEL.WEIGHTS", str(root / name / "model_final.pth"),
            ]
        )  # fmt: skip
    add("together", "resobj_rpn", "cells_faster_rcnn_resobj", RCNN, 3)
    add("together", "resobj_rpn", "cells_faster_rcnn_resobj", RCNN, 6, "--resume")
    add("alone", "stock", "cells_faster_rcnn_sampling", STOCK, 2)
    (root / "jobs.json").write_text(json.dumps(jobs))
    code = "import sys; from tests.engine.test_families import run_all; run_all(sys.argv[1])"
    command = [sys.executable, "-c", code, str(root / "jobs.json")]
    warm_python.run(command, cwd=repository, timeout=500, spawns=(2,), check=True)
    return root


def metrics(out):
    """The last value of everything that was logged."""
    logged = {}
    for line in (out / "metrics.json").read_text().splitlines():
        logged.update(json.loads(line))
    return logged


def assert_two_processes_and_resumed(out):
    for rank, name in enumerate(("log.txt", "log.txt.rank1")):
        assert f"Rank of current process: {rank}. World size: 2" in (out / name).read_text()
    log = (out / "log.txt").read_text()
    assert "Starting training from iteration 0" in log
    assert "Starting training from iteration 3" in log


@pytest.mark.parametrize("family", FAMILIES)
def test_family_trains_on_two_processes_resumes_and_predicts(family, folder):
    out = folder / family
    assert_two_processes_and_resumed(out)
    assert "bbox/AP" in metrics(out)
    images = list(folder.glob("scenes/val/*.png"))
    detections = json.loads((out / "found/results.json").read_text())
    for x, y, width, height in (row["bbox"] for row in detections):
        assert x >= 0 and y >= 0 and x + width <= 64.01 and y + height <= 64.01
    assert {row["image_id"] for row in detections} <= set(range(1, len(images) + 1))
    assert detections


def test_resobj_rpn_on_two_processes_resumes_and_draws(folder):
    out = folder / "resobj_rpn"
    assert_two_processes_and_resumed(out)
    logged = metrics(out)
    assert {"loss_rpn_objectness", "loss_rpn_residual_2", "loss_rpn_loc", "bbox/AP"} <= set(logged)
    assert 0 < logged["objectness/step2/positive"] < 1
    assert (out / "objectness_curves.png").stat().st_size > 0


def test_stock_faster_rcnn_trains_through_the_same_command(folder):
    logged = metrics(folder / "stock")
    assert {"loss_rpn_cls", "bbox/AP"} <= set(logged)
