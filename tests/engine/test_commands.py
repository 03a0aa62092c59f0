import os
import shlex
import sys
from types import SimpleNamespace

import pytest

from resobj_d2.engine.commands import evaluate_command, predict_command, resume_command


@pytest.fixture(autouse=True)
def script(monkeypatch, tmp_path):
    """As if a script were running, with ``python`` on the path."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    for name in ("python", "resobj-d2"):
        (tmp_path / "bin" / name).write_text("")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(python.parent))
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--config-file", "a.yaml"])
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=None))
    return python


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["train_net.py", "--config-file", "a.yaml", "SEED", "1"],
            "python train_net.py --resume --config-file a.yaml SEED 1",
        ),
        (["train_net.py", "--resume", "SEED", "1"], "python train_net.py --resume SEED 1"),
        (["train_net.py", "SEED", "1"], "python train_net.py --resume SEED 1"),
        (
            ["{bin}/resobj-d2", "train", "--config-file", "a.yaml"],
            "resobj-d2 train --resume --config-file a.yaml",
        ),
        (
            ["/elsewhere/resobj-d2", "--traceback", "train", "SEED", "1"],
            "/elsewhere/resobj-d2 --traceback train --resume SEED 1",
        ),
        (
            ["my tool.py", "DATASETS.TEST", "('a',)", "X", "it's $5", "Y", ""],
            "python 'my tool.py' --resume DATASETS.TEST \"('a',)\" X 'it'\"'\"'s $5' Y ''",
        ),
    ],
)
def test_resume(argv, expected, script):
    argv = [word.format(bin=script.parent) for word in argv]
    command = resume_command(argv)
    assert command == expected
    given = [word for word in argv[1:] if word != "--resume"]
    words = [word for word in shlex.split(command) if word != "--resume"]
    assert words[-len(given) :] == given


def test_resume_of_a_module(monkeypatch):
    for name in ("resobj_d2", "resobj_d2.__main__"):
        monkeypatch.setitem(
            sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(name=name))
        )
        argv = ["/site-packages/resobj_d2/__main__.py", "train", "SEED", "1"]
        assert resume_command(argv) == "python -m resobj_d2 train --resume SEED 1"


def test_python_that_is_not_on_the_path(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/venv/bin/python")
    assert resume_command(["t.py"]) == "/venv/bin/python t.py --resume"


@pytest.mark.parametrize(
    ("program", "expected"),
    [("train_net.py", "python -m resobj_d2"), ("{bin}/resobj-d2", "resobj-d2")],
)
def test_evaluate_and_predict(program, expected, script, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program.format(bin=script.parent)])
    config = os.path.join("out", "config.yaml")
    assert evaluate_command("out/model_best.pth", "out") == (
        f"{expected} eval --config-file {config} --weights out/model_best.pth"
    )
    assert predict_command("out/model_best.pth", "out") == (
        f"{expected} predict --config-file {config} "
        "--weights out/model_best.pth --input IMAGES --output drawn"
    )
