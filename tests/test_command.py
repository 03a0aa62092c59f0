"""Mistakes of the user's end in one line and status 2; defects keep their traceback."""

import json
import logging
import os
import subprocess
import sys

import pytest
import yaml
from detectron2.data import DatasetCatalog
from detectron2.modeling import BACKBONE_REGISTRY
from torch.utils.data import DataLoader

from resobj_d2.checkpoint.checkpointer import CheckpointError
from resobj_d2.command import CommandParser, explain, is_users_mistake, run_command
from resobj_d2.config import load_config
from resobj_d2.losses import BOX_LOSS_REGISTRY


class BrokenSet:
    """A dataset whose images cannot be read."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise OSError("dataset 'x': image 1, /a.png, does not exist")


MISTAKES = {
    "a missing file": (
        lambda: open("/nowhere/a.json"),
        "/nowhere/a.json: No such file or directory",
    ),
    "a config that is missing": (lambda: load_config("/nowhere/a.yaml"), "config file not found: "),
    "a key that does not exist": (
        lambda: load_config("", ["SEDE", "1"]),
        "the overrides KEY VALUE: there is no key SEDE. Did you mean SEED?",
    ),
    "a value of another type": (
        lambda: load_config("", ["SOLVER.MAX_ITER", "many"]),
        "SOLVER.MAX_ITER must be a whole number, got 'many'",
    ),
    "Detectron2's registry": (
        lambda: BACKBONE_REGISTRY.get("foo"),
        "No object named 'foo' found in 'BACKBONE' registry!",
    ),
    "our registry": (lambda: BOX_LOSS_REGISTRY.get("foo"), "there is no "),
    "a dataset that is not registered": (
        lambda: DatasetCatalog.get("foo"),
        "Dataset 'foo' is not registered!",
    ),
    "a class of ours": (lambda: fail(CheckpointError("no weights")), "no weights"),
    "a package that is missing": (lambda: __import__("nowhere_"), "No module named 'nowhere_'"),
    "a file that is no yaml": (lambda: yaml.safe_load("a: [1"), "while parsing a flow sequence in"),
    "a worker of torch's": (
        lambda: list(DataLoader(BrokenSet(), num_workers=1)),
        "dataset 'x': image 1, /a.png, does not exist",
    ),
}


def fail(error):
    raise error


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name, capsys, monkeypatch):
    monkeypatch.delenv("RESOBJ_TRACEBACK", raising=False)
    cause, message = MISTAKES[name]
    assert run_command(lambda argv: cause(), [], uses_operators=False) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


@pytest.mark.parametrize(
    "cause",
    [
        lambda: {}["key"],
        lambda: fail(RuntimeError("a shape is wrong")),
        lambda: fail(AssertionError()),
        lambda: [].index(1),  # a ValueError outside of what checks input
        lambda: __import__("resobj_d2.nowhere"),
    ],
)
def test_a_defect_keeps_its_traceback(cause):
    with pytest.raises(Exception) as caught:
        run_command(lambda argv: cause(), [], uses_operators=False)
    assert not is_users_mistake(caught.value)


@pytest.mark.parametrize("how", ["--debug", "--traceback", "environment"])
def test_the_traceback_of_a_mistake_on_request(how, monkeypatch):
    monkeypatch.setenv("RESOBJ_TRACEBACK", "1" if how == "environment" else "0")
    seen = []

    def command(argv):
        seen.extend(argv)
        raise FileNotFoundError("a")

    arguments = ["x", "y"] if how == "environment" else ["x", how, "y"]
    with pytest.raises(FileNotFoundError):
        run_command(command, arguments, uses_operators=False)
    assert seen == ["x", "y"]


def test_explain_has_one_line():
    assert explain(ValueError("a\n  b\n")) == "a b"
    assert explain(KeyError("no 'x'")) == "no 'x'"
    assert explain(ValueError()) == "ValueError"


def test_status_and_arguments_pass_through():
    assert run_command(lambda argv: len(argv), ["a", "b", "c"], uses_operators=False) == 3
    assert run_command(lambda argv: None, [], uses_operators=False) == 0


def test_ctrl_c_is_no_traceback(capsys):
    assert run_command(lambda argv: fail(KeyboardInterrupt()), [], uses_operators=False) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_goes_away_is_no_error(repository):
    command = f"{sys.executable} -m resobj_d2 configs | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=repository, capture_output=True, text=True)
    assert done.stdout.startswith("name") and done.stderr == ""


def test_operators_are_named_first(capsys, monkeypatch):
    from resobj_d2 import ops

    assert run_command(lambda argv: print("here"), []) == 0
    captured = capsys.readouterr()
    assert captured.err == f"{ops.describe_operators()}\n"
    assert captured.err.startswith("operators: ")
    assert run_command(lambda argv: 0, ["--help"]) == 0
    assert capsys.readouterr().err == ""


@pytest.fixture
def coco(tmp_path):
    """One file that is no image, with one box of one class; as overrides of a config."""
    (tmp_path / "a.png").write_text("no image")
    (tmp_path / "a.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.png", "height": 64, "width": 64}],
                "annotations": [
                    {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 30, 30],
                     "area": 900, "iscrowd": 0}
                ],
                "categories": [{"id": 1, "name": "thing"}],
            }
        )
    )  # fmt: skip
    entry = {"name": "broken_image", "json": str(tmp_path / "a.json"), "images": str(tmp_path)}
    return [
        "DATASETS.REGISTER", str([entry]),
        "DATASETS.TRAIN", "('broken_image',)",
        "DATASETS.TEST", "()",
        "MODEL.DENSE.NUM_CLASSES", "1",
        "MODEL.DEVICE", "cpu",
        "SOLVER.IMS_PER_BATCH", "2",
        "SOLVER.MAX_ITER", "1",
        "SOLVER.STEPS", "()",
        "DATALOADER.NUM_WORKERS", "0",
        "OUTPUT_DIR", str(tmp_path / "out"),
    ]  # fmt: skip


WRONG_CLASSES = ["MODEL.DENSE.NUM_CLASSES", "3"], "MODEL.DENSE.NUM_CLASSES is 3, but dataset"
BROKEN_IMAGE = [], "/a.png"  # found out by the processes, while training


@pytest.mark.slow
@pytest.mark.parametrize(
    "program, processes, mistake",
    [
        (["train_net.py"], 1, WRONG_CLASSES),
        (["-m", "resobj_d2", "train"], 1, BROKEN_IMAGE),
        (["-m", "resobj_d2", "train"], 2, WRONG_CLASSES),
        (["-m", "resobj_d2", "train"], 2, BROKEN_IMAGE),
    ],
)
def test_training_explains_itself(program, processes, mistake, coco, repository, warm_python):
    options, message = mistake
    done = warm_python.run(
        [
            sys.executable, "-W", "ignore", *program, "--config-file", "scenes_retinanet_fl",
            "--num-gpus", str(processes), *coco, *options,
        ],
        cwd=repository,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RESOBJ_TRACEBACK": ""},
        spawns=(processes,) if processes > 1 else (),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors and all(message in line for line in errors), done.stderr
    assert len(errors) == 1 or (processes == 2 and mistake == BROKEN_IMAGE)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data", "x"], "unrecognized arguments: --data x. Did you mean --dataset?"),
        (["--data=x"], "unrecognized arguments: --data=x. Did you mean --dataset?"),
        (["--outptu", "x"], "unrecognized arguments: --outptu x. Did you mean --output?"),
        (["--o", "x"], "unrecognized arguments: --o x. Did you mean --opts or --output?"),
        (["--nothing"], "unrecognized arguments: --nothing"),
        (["more"], "unrecognized arguments: more"),
    ],
)
def test_options_are_not_abbreviated(words, told, capsys):
    parser = CommandParser(prog="x")
    for name in ("--dataset", "--output", "--opts"):
        parser.add_argument(name)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(words)
    assert caught.value.code == 2 and capsys.readouterr().err.endswith(f"x: error: {told}\n")
    assert parser.parse_args(["--dataset", "a"]).dataset == "a"


@pytest.mark.parametrize(
    ("given", "told"), [("onx", ". Did you mean onnx?"), ("torch", ". Did you mean torchscript?")]
)
def test_a_choice_is_not_guessed_but_suggested(given, told, capsys):
    parser = CommandParser(prog="x")
    parser.add_argument("--format", choices=["pt2", "onnx", "torchscript"])
    with pytest.raises(SystemExit):
        parser.parse_args(["--format", given])
    error = capsys.readouterr().err
    assert f"invalid choice: '{given}'" in error and error.endswith(f"{told}\n")


@pytest.mark.parametrize("log", [False, True])
def test_warnings_are_told_as_such(log, capsys):
    logger = logging.getLogger("resobj_d2.analysis.source")
    run_command(lambda argv: logger.warning("%s is odd", "x"), [], uses_operators=False, log=log)
    assert capsys.readouterr().out == ("warning: x is odd\n" if log else "")


def test_all_commands_have_this_parser(repository):
    """But the standalone script that makes Detectron2 importable."""
    files = [*(repository / "resobj_d2").rglob("*.py"), *(repository / "benchmarks").rglob("*.py")]
    own = {
        file.relative_to(repository).as_posix()
        for file in files
        if "argparse.ArgumentParser(" in file.read_text()
    }
    assert own == {"resobj_d2/install_detectron2.py"}
    assert len([file for file in files if "CommandParser(" in file.read_text()]) > 25
