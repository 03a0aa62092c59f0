"""What a person sees of a run: the console, Ctrl-C, the commands that it ends with."""

import os
import re
import shlex
import signal
import time

import pytest
import torch
import yaml

pytestmark = pytest.mark.slow


def wait_for(pattern, path, process, seconds=200):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and re.search(pattern, path.read_text(errors="replace"), re.M):
            return
        assert process.poll() is None, path.read_text(errors="replace")
        time.sleep(0.1)
    raise AssertionError(f"no {pattern} in {path.read_text(errors='replace')}")


def rows(output):
    """The summaries' ``name  text`` lines; a long path stands in the line below its name."""
    return dict(re.findall(r"^([a-z][a-z ]*?)(?: {2,}|\n {2,})(\S.*)$", output, re.M))


def table(output):
    return re.findall(r"^bbox +[\d.]+ .*$", output, re.M)


def test_console_is_short_and_its_commands_work(run, repository, tmp_path, warm_python):
    options = ["SOLVER.MAX_ITER", 24, "SOLVER.CHECKPOINT_PERIOD", 24]
    code, output = run(*options, fresh=True, toy=False)
    assert code == 0, output
    out = tmp_path / "out"
    assert "Warning" not in output and "Traceback" not in output
    assert len(output.splitlines()) < 50 and "\x1b" not in output
    shown = rows(output)
    assert shown["model"].startswith("ResObjDenseDetector, 12.0 million parameters")
    contents = re.fullmatch(r"tiny_train: (\d+) images, (\d+) boxes", shown["training data"])
    images, boxes = contents.groups()
    assert int(images) == 16 and int(boxes) > 16
    assert shown["classes"].startswith("8: disc, ring")
    assert "native" in shown["operators"] or "pure torch" in shown["operators"]
    lines = re.findall(r"^ *(\d+)/24  loss .* lr \S+  \S+ s/iteration  ETA \d\d:\d\d", output, re.M)
    assert lines == ["1", "20", "24"]

    log = (out / "log.txt").read_text()
    # Detectron2's messages, and the package's own from before there was the folder.
    details = ("Environment info", "Running with full config", "total_loss: ", "bbox of each class")
    for words in details:
        assert words in log and words not in output
    assert "resobj_d2.config.load WARNING: MODEL.DEVICE is cuda but no GPU" in log
    assert yaml.safe_load((out / "config.yaml").read_text())["SOLVER"]["MAX_ITER"] == 24
    assert "(streams): ModuleDict(" in (out / "model.txt").read_text()

    assert len(table(output)) == 1
    assert shown["best checkpoint"].startswith(f"{out}/model_final.pth (AP ")
    assert (out / "objectness_curves.png").stat().st_size > 0
    assert shown["picture"] == f"{out}/objectness_curves.png"

    evaluated = warm_python.run(shlex.split(shown["evaluate"]), cwd=repository)
    assert evaluated.returncode == 0, evaluated.stderr
    assert table(evaluated.stdout) == table(output)
    assert yaml.safe_load((out / "config.yaml").read_text())["DATASETS"]["TRAIN"] == ["tiny_train"]

    images = str(tmp_path / "scenes/val")
    command = [
        {"IMAGES": images, "drawn": str(tmp_path / "drawn")}.get(word, word)
        for word in shlex.split(shown["predict"])
    ]
    warm_python.run(command, cwd=repository, check=True)
    assert len(list((tmp_path / "drawn").glob("*.*g"))) >= 6


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_with_a_checkpoint_and_the_command_that_resumes(
    processes, run, repository, tmp_path, warm_python
):
    out, console = tmp_path / "out", tmp_path / "console.txt"
    options = ["SOLVER.MAX_ITER", 2000, "SOLVER.CHECKPOINT_PERIOD", 1000]
    options += ["DATALOADER.NUM_WORKERS", 1]  # which a terminal's Ctrl-C reaches as well
    spawns = (2, 2) if processes == 2 else ()  # each of them two data loaders
    flags = ["--num-gpus", str(processes)]
    process = run(*options, wait=False, flags=flags, spawns=spawns)
    wait_for(r"^ *1/2000  loss", console, process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=100) == 130
    output = console.read_text()
    assert "Traceback" not in output and "Error" not in output
    stopped = re.findall(
        r"^Stopped after iteration (\d+) of 2000, checkpoint (\S+)\. To go on: (.*)$", output, re.M
    )
    assert len(stopped) == 1
    done, path, command = int(stopped[0][0]), stopped[0][1], stopped[0][2]
    assert path == f"{out}/model_{done - 1:07d}.pth"
    assert [p.name for p in out.glob("*.pth*")] == [os.path.basename(path)]
    state = torch.load(path, weights_only=True)
    momentum = state["trainer"]["_trainer"]["optimizer"]["state"]
    assert len(momentum) > 30

    resumed = warm_python.run(
        [*shlex.split(command), "SOLVER.MAX_ITER", str(done + 3)], cwd=repository, spawns=spawns
    )
    assert resumed.returncode == 0, resumed.stderr
    shown = rows(resumed.stdout)
    assert shown["weights"] == path
    assert shown["training"] == f"iterations {done + 1} to {done + 3}, 4 images each"
    final = torch.load(out / "model_final.pth", weights_only=True)
    assert final["iteration"] == done + 2
    # Its momentum goes on from what it was, and a run from anew would have a lower rate.
    rate = final["trainer"]["_trainer"]["optimizer"]["param_groups"][0]["lr"]
    assert rate > state["trainer"]["_trainer"]["optimizer"]["param_groups"][0]["lr"]


def test_second_ctrl_c_stops_at_once(run, tmp_path):
    """In an iteration that takes a while: its images are hundreds."""
    options = ["SOLVER.MAX_ITER", 2000, "SOLVER.IMS_PER_BATCH", 256]
    process = run(*options, wait=False)
    wait_for(r"^ *1/2000  loss", tmp_path / "console.txt", process)
    process.send_signal(signal.SIGINT)
    wait_for("^Stopping after this iteration", tmp_path / "console.txt", process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=100) == 130
    output = (tmp_path / "console.txt").read_text()
    assert "Stopped at once" in output and "Traceback" not in output
    assert not list((tmp_path / "out").glob("*.pth*"))
