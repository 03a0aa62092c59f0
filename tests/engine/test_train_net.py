"""train_net.py as users run it: train, kill, resume, evaluate, two processes."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

pytestmark = pytest.mark.slow


def test_train_evaluate_and_refuse(run, tmp_path):
    code, output = run()
    assert code == 0, output
    out = tmp_path / "out"
    logged = {}
    for line in (out / "metrics.json").read_text().splitlines():
        logged.update(json.loads(line))
    assert {"loss_objectness", "loss_residual_1", "loss_residual_2", "bbox/AP"} <= set(logged)
    assert 0 < logged["objectness/step2/positive"] < 1
    assert (out / "objectness_curves.png").stat().st_size > 0
    assert list(out.glob("events.out.tfevents.*"))

    code, evaluated = run("MODEL.WEIGHTS", out / "model_final.pth", flags=["--eval-only"])
    assert code == 0, evaluated
    scores = re.findall(r"copypaste: (\d.*)$", (out / "log.txt").read_text(), re.M)
    assert len(scores) == 2 and scores[0] == scores[1]

    code, refused = run("MODEL.WEIGHTS", "", flags=["--eval-only"])
    assert code != 0 and "give MODEL.WEIGHTS" in refused


def test_killed_run_resumes_at_the_last_checkpoint(run, tmp_path):
    out = tmp_path / "out"
    process = run("SOLVER.MAX_ITER", 2000, "SOLVER.CHECKPOINT_PERIOD", 3, wait=False)
    deadline = time.monotonic() + 200
    while not (out / "last_checkpoint").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    last = (out / "last_checkpoint").read_text()
    iteration = int(re.search(r"\d+", last).group())
    state = torch.load(out / last, weights_only=True)
    saved = state["model"]["streams.anchors.stages.0.normalizer.mean"]
    assert saved.item() != 100.0

    momentum = state["trainer"]["_trainer"]["optimizer"]["state"]
    assert len(momentum) > 50 and all("momentum_buffer" in x for x in momentum.values())

    code, output = run("SOLVER.MAX_ITER", iteration + 3, flags=["--resume"])
    assert code == 0, output
    log = (out / "log.txt").read_text()
    assert f"Loading from {out / last}" in log
    assert f"Starting training from iteration {iteration + 1}" in log
    final = torch.load(out / "model_final.pth", weights_only=True)
    assert final["iteration"] == iteration + 2


def test_two_processes_train_and_evaluate(run, tmp_path):
    """Gloo on the CPU, through the launcher; tests/modeling/test_distributed.py compares them."""
    code, output = run(flags=["--num-gpus", "2"])
    assert code == 0, output
    for rank, name in enumerate(("log.txt", "log.txt.rank1")):
        log = (tmp_path / "out" / name).read_text()
        assert f"Rank of current process: {rank}. World size: 2" in log
    assert "bbox/AP" in (tmp_path / "out" / "metrics.json").read_text()


YOLOV3 = [
    "INPUT.FIXED_SIZE", "[64, 64]",
    "INPUT.MULTI_SCALE", "[64, 96]",
    "INPUT.MULTI_SCALE_PERIOD", "1",
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
    "MODEL.FPN.OUT_CHANNELS", "64",
    "MODEL.ROI_HEADS.NUM_CLASSES", "8",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
    "MODEL.RESOBJ_ROI.QUALITY.ENABLED", "True",
]  # fmt: skip

# Families that are no RetinaNet: a yaml and what it needs besides, to learn scenes of 64 pixels.
FAMILIES = {
    "ssd": ("overfit_ssd", ["INPUT.FIXED_SIZE", "[64, 96]", "MODEL.DENSE.NUM_CLASSES", "8"]),
    "yolov3": ("overfit_yolov3", YOLOV3),
    "efficientdet": ("overfit_efficientdet", EFFICIENTDET),
    "libra_rcnn": ("cells_libra_rcnn", LIBRA_RCNN),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_family_trains_on_two_processes_resumes_and_predicts(family, run, tmp_path, repository):
    config, options = FAMILIES[family]
    out = tmp_path / "out"
    code, output = run("SOLVER.MAX_ITER", 3, *options, flags=["--num-gpus", "2"], config=config)
    assert code == 0, output
    assert "bbox/AP" in (out / "metrics.json").read_text()
    code, output = run("SOLVER.MAX_ITER", 5, *options, flags=["--resume"], config=config)
    assert code == 0, output
    assert "Starting training from iteration 3" in (out / "log.txt").read_text()
    images = sorted(str(x) for x in tmp_path.glob("scenes/val/*.png"))
    command = [
        sys.executable, "-W", "ignore", "-m", "resobj_d2.inference.predict", "--input", *images,
        "--output", str(tmp_path / "found"), "--config-file",
        str(repository / f"configs/small/{config}.yaml"), *options,
        "DATASETS.TEST", "()", "MODEL.WEIGHTS", str(out / "model_final.pth"),
    ]  # fmt: skip
    subprocess.run(command, cwd=repository, check=True, timeout=200)
    detections = json.loads((tmp_path / "found/results.json").read_text())
    for x, y, width, height in (row["bbox"] for row in detections):
        assert x >= 0 and y >= 0 and x + width <= 64.01 and y + height <= 64.01
    assert {row["image_id"] for row in detections} <= set(range(1, len(images) + 1))
    assert detections


def test_no_gpus_means_one_process_on_the_cpu(run, tmp_path):
    code, output = run("SOLVER.MAX_ITER", 1, flags=["--num-gpus", "0"])
    assert code == 0, output
    categories = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["categories"]
    assert len(categories) == 8 and categories[7] == {"id": 8, "name": "heart"}


def test_stock_faster_rcnn_trains_through_the_same_script(run, tmp_path):
    code, output = run(
        "MODEL.META_ARCHITECTURE", "GeneralizedRCNN",
        "MODEL.DENSE.OBJECTNESS.ENABLED", "False",  # the yaml's, which no R-CNN would read
        "MODEL.PROPOSAL_GENERATOR.NAME", "RPN",
        "MODEL.RPN.IN_FEATURES", "['p3', 'p4', 'p5', 'p6', 'p7']",
        "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES", "['p3', 'p4', 'p5']",
        "MODEL.ROI_HEADS.NUM_CLASSES", 8,
        "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC", 1,
        "MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32], [64], [128], [256]]",
        "SOLVER.MAX_ITER", 2,
    )  # fmt: skip
    assert code == 0, output
    logged = (tmp_path / "out" / "metrics.json").read_text()
    assert "loss_rpn_cls" in logged and "bbox/AP" in logged


def test_resobj_rpn_in_two_processes_resumes_and_draws(run, tmp_path):
    options = [
        "MODEL.META_ARCHITECTURE", "GeneralizedRCNN",
        "MODEL.DENSE.OBJECTNESS.ENABLED", "False",  # the yaml's, which no R-CNN would read
        "MODEL.PROPOSAL_GENERATOR.NAME", "ResObjRPN",
        "MODEL.RPN.HEAD_NAME", "ResObjRPNHead",
        "MODEL.RPN.IN_FEATURES", "['p3', 'p4', 'p5', 'p6', 'p7']",
        "MODEL.RESOBJ_RPN.OBJECTNESS.ENABLED", True,
        "MODEL.RESOBJ_RPN.SAMPLER.NAME", "KeepAll",
        "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES", "['p3', 'p4', 'p5']",
        "MODEL.ROI_HEADS.NUM_CLASSES", 8,
        "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC", 1,
        "MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32], [64], [128], [256]]",
        "SOLVER.CHECKPOINT_PERIOD", 3,
    ]  # fmt: skip
    code, output = run(*options, "SOLVER.MAX_ITER", 3, flags=["--num-gpus", "2"])
    assert code == 0, output
    code, output = run(*options, "SOLVER.MAX_ITER", 6, flags=["--num-gpus", "2", "--resume"])
    assert code == 0, output
    out = tmp_path / "out"
    assert "Starting training from iteration 3" in (out / "log.txt").read_text()
    logged = {}
    for line in (out / "metrics.json").read_text().splitlines():
        logged.update(json.loads(line))
    assert {"loss_rpn_objectness", "loss_rpn_residual_2", "loss_rpn_loc", "bbox/AP"} <= set(logged)
    assert 0 < logged["objectness/step2/positive"] < 1
    assert (out / "objectness_curves.png").stat().st_size > 0


def test_diverging_run_says_why(run, tmp_path):
    code, output = run("SOLVER.BASE_LR", 1e12, "SOLVER.CLIP_GRADIENTS.ENABLED", False)
    assert code != 0
    assert re.search(r"NonFiniteLossError: non-finite loss at iteration \d+: \{'loss_", output)
    assert (tmp_path / "out" / "nonfinite_batch_rank0.pth").exists()


def test_missing_image_is_named(run, tmp_path):
    code, output = run("SOLVER.MAX_ITER", 1)
    assert code == 0, output
    images = sorted(tmp_path.glob("scenes/train/*.png"))[4:]  # the first few are checked at start
    assert images
    for image in images:
        image.unlink()
    code, output = run("SOLVER.MAX_ITER", 8)
    assert code != 0
    assert re.search(r"image \d+, \S*scenes/train/\S+.png, does not exist", output)
