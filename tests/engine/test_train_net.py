"""train_net.py as users run it: train, kill, resume, evaluate, two processes."""

import json
import re
import signal
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
    assert code != 0 and "give --weights FILE, or set MODEL.WEIGHTS" in refused


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
    assert len(momentum) > 30 and all("momentum_buffer" in x for x in momentum.values())

    code, output = run("SOLVER.MAX_ITER", iteration + 3, flags=["--resume"])
    assert code == 0, output
    log = (out / "log.txt").read_text()
    assert f"Loading from {out / last}" in log
    assert f"Starting training from iteration {iteration + 1}" in log
    final = torch.load(out / "model_final.pth", weights_only=True)
    assert final["iteration"] == iteration + 2


def test_two_processes_train_and_evaluate(run, tmp_path):
    """Gloo on the CPU, through the launcher; tests/modeling/test_distributed.py compares them."""
    code, output = run(flags=["--num-gpus", "2"], fresh=True)
    assert code == 0, output
    for rank, name in enumerate(("log.txt", "log.txt.rank1")):
        log = (tmp_path / "out" / name).read_text()
        assert f"Rank of current process: {rank}. World size: 2" in log
    assert "bbox/AP" in (tmp_path / "out" / "metrics.json").read_text()


def test_no_gpus_means_one_process_on_the_cpu(run, tmp_path):
    code, output = run("SOLVER.MAX_ITER", 1, flags=["--num-gpus", "0"])
    assert code == 0, output
    categories = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["categories"]
    assert len(categories) == 8 and categories[7] == {"id": 8, "name": "heart"}


def test_diverging_run_says_why(run, tmp_path):
    code, output = run("SOLVER.BASE_LR", 1e12, "SOLVER.CLIP_GRADIENTS.ENABLED", False)
    assert code != 0
    assert re.search(r"^error: non-finite loss at iteration \d+: \{'loss_", output, re.M)
    assert (tmp_path / "out" / "nonfinite_batch_rank0.pth").exists()


def test_missing_images_are_told_before_the_training(run, tmp_path):
    code, output = run("SOLVER.MAX_ITER", 1)
    assert code == 0, output
    images = sorted(tmp_path.glob("scenes/train/*.png"))[4:]  # the first few are checked at start
    assert len(images) == 12
    for image in images:
        image.unlink()
    code, output = run("OUTPUT_DIR", tmp_path / "second")
    assert code != 0
    shown = ", ".join(map(str, images[:3]))
    assert f"error: dataset 'tiny_train': 12 of 16 pictures do not exist: {shown}, ..." in output
    assert output.count("error:") == 1 and "iteration" not in output
