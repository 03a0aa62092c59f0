import re
import subprocess
import sys

import pytest

from resobj_d2.demo import command
from resobj_d2.demo.budget import (
    LEAST_ITERATIONS,
    MOST_ITERATIONS,
    QUICK_ITERATIONS,
    plan_for_iterations,
    plan_for_time,
)
from resobj_d2.demo.run import _remove_former_run


def test_demo_clears_its_own_folder_only(tmp_path):
    own, other = tmp_path / "demo", tmp_path / "training"
    _remove_former_run(own)
    (own / "model_final.pth").touch()
    (own / "detections.png").touch()
    _remove_former_run(own)
    assert not (own / "model_final.pth").exists() and (own / "detections.png").exists()

    other.mkdir()
    (other / "model_final.pth").touch()
    with pytest.raises(FileExistsError, match="no demo wrote"):
        _remove_former_run(other)
    assert (other / "model_final.pth").exists()


def plan(seconds, minutes=6.0, elapsed=60.0):
    return plan_for_time(minutes=minutes, elapsed=elapsed, seconds_per_iteration=seconds)


def test_fast_machine_trains_for_as_long_as_is_of_use():
    chosen, text = plan(0.1)
    assert chosen == plan_for_iterations(MOST_ITERATIONS)
    assert "0.1 s" in text and f"{MOST_ITERATIONS} iterations" in text
    assert "2.6 minutes" in text  # 60 s and 950 times 0.1 s


def test_slower_machine_trains_for_what_fits():
    chosen, text = plan(1.0)
    assert chosen.iterations == 250  # 300 s are left, 50 of them for evaluation and pictures
    assert chosen.floor == plan_for_iterations(QUICK_ITERATIONS).floor
    assert "250 iterations that fit into 6 minutes" in text


def test_very_slow_machine_trains_for_the_least_and_says_how_long_it_takes():
    for seconds, elapsed in ((6.0, 60.0), (1.0, 1000.0)):
        chosen, text = plan(seconds, elapsed=elapsed)
        assert chosen.iterations == LEAST_ITERATIONS
        assert "too long for 6 minutes" in text
        assert f"{(elapsed + 150 * seconds) / 60:.1f} minutes in all" in text


def test_more_minutes_never_mean_a_lower_floor():
    plans = [plan(1.0, minutes=minutes)[0] for minutes in range(1, 30)]
    lengths, floors = [p.iterations for p in plans], [p.floor for p in plans]
    assert lengths == sorted(lengths) and floors == sorted(floors)
    assert (lengths[0], lengths[-1]) == (LEAST_ITERATIONS, MOST_ITERATIONS)
    assert 0 < floors[0] < floors[-1]


def test_shorter_training_than_was_measured_has_no_floor():
    assert plan_for_iterations(LEAST_ITERATIONS - 1).floor == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "positive"),
        (["--minutes", "nan"], "positive"),
        (["--minutes", "soon"], "--minutes"),
        (["--iterations", "0"], "at least 1"),
        (["--quick", "--minutes", "3"], "not allowed"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        command.main(arguments)
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_quick_is_a_number_of_iterations():
    assert command._parser().parse_args(["--quick"]).iterations == QUICK_ITERATIONS
    assert command._parser().parse_args([]).iterations is None


SCENES = 'format: "scenes", image_size: 64, num_train: 8, num_val: 8'
TINY = """
_BASE_: "{base}"
MODEL:
  DEVICE: "cpu"
  FPN: {{OUT_CHANNELS: 32}}
  DENSE: {{TOWER: {{CHANNELS: 32, NUM_CONVS: 1}}}}
DATASETS:
  REGISTER:
    - {{name: "tiny_train", split: "train", {scenes}}}
    - {{name: "tiny_val", split: "val", {scenes}}}
  TRAIN: ("tiny_train",)
  TEST: ("tiny_val",)
INPUT: {{MIN_SIZE_TRAIN: (32,), MIN_SIZE_TEST: 32}}
SOLVER: {{IMS_PER_BATCH: 1}}
DATALOADER: {{NUM_WORKERS: 0}}
"""


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """A function: arguments to a demo of a tiny detector, run in an empty folder."""
    (tmp_path / "tiny.yaml").write_text(TINY.format(base=command.CONFIG, scenes=SCENES))
    folder = tmp_path / "empty"
    folder.mkdir()

    def run(*arguments, config=True):
        options = ["--config-file", str(tmp_path / "tiny.yaml")] if config else []
        return subprocess.run(
            [sys.executable, "-m", "resobj_d2.demo", *options, *arguments],
            cwd=folder, capture_output=True, text=True,
        )  # fmt: skip

    run.folder = folder
    return run


@pytest.mark.slow
def test_demo_times_itself_and_says_what_it_does(demo):
    """Under no time at all: the shortest training, of a detector that cannot learn in it."""
    ran = demo("--minutes", "0.01")
    assert ran.stderr == ""
    assert re.search(r"An iteration takes \S+ s here, too long for 0.01 minutes", ran.stdout)
    floor = plan_for_iterations(LEAST_ITERATIONS).floor
    assert f"AP50 must reach {floor:g}." in ran.stdout
    assert f"{LEAST_ITERATIONS}/{LEAST_ITERATIONS}  loss" in ran.stdout
    ap50 = float(re.search(r"^bbox +\S+ +(\S+)", ran.stdout, re.M)[1])
    failed = f"error: the demo failed: AP50 {ap50} after {LEAST_ITERATIONS} iterations"
    assert (failed in ran.stdout) is (ran.returncode == 1) is (ap50 < floor)
    for name in ("detections.png", "steps.png", "objectness_curves.png"):
        path = demo.folder / "output/demo" / name
        assert path.stat().st_size > 0 and f"output/demo/{name}" in ran.stdout


@pytest.mark.slow
def test_length_on_request_is_reproducible_and_not_timed(demo):
    outputs = [demo("--iterations", "3", "--output", name).stdout for name in ("one", "two")]
    losses = [re.findall(r"^(\d/3  loss .*?)  lr", text, re.M) for text in outputs]
    assert losses[0] == losses[1] and [line[0] for line in losses[0]] == ["1", "3"]
    assert "Timing" not in outputs[0]
    # Timing a few iterations first changes nothing about the run.
    code = (
        "import resobj_d2.demo.budget as budget, resobj_d2.demo.run as run, sys\n"
        "budget.LEAST_ITERATIONS = budget.MOST_ITERATIONS = 3\n"
        "from resobj_d2.demo.command import main\n"
        f"sys.exit(main({['--config-file', '../tiny.yaml', '--output', 'three']}))"
    )
    timed = subprocess.run(
        [sys.executable, "-c", code], cwd=demo.folder, capture_output=True, text=True
    )
    assert "Timing" in timed.stdout
    assert re.findall(r"^(\d/3  loss .*?)  lr", timed.stdout, re.M) == losses[0]
