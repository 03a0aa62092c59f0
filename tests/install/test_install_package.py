"""Without a compiler the package installs, and its operators run without Detectron2."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# Runs with only the fresh installation: importing Detectron2 is made impossible.
PROGRAM = """
import json
import sys

class NoDetectron2:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "detectron2":
            raise ModuleNotFoundError("Detectron2 is hidden in this test")

sys.meta_path.insert(0, NoDetectron2())

import torch
import resobj_d2
from resobj_d2 import ops

print(resobj_d2.__file__)
print(ops.native_status()["cpu"])
first = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
second = torch.tensor([[1.0, 1.0, 3.0, 3.0], [5.0, 5.0, 6.0, 6.0]])
print(json.dumps(ops.pairwise_box_iou(first, second).tolist()))
"""


def copy_of_repository(folder):
    """Copy what an installation needs, so that the build leaves nothing in the checkout."""
    skip = shutil.ignore_patterns("*.so", "__pycache__", "_build.json")
    for name in ("resobj_d2", "csrc", "configs"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / name)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["switched off", "no compiler"])
def test_installs_without_compiled_code(tmp_path, how):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    copy_of_repository(source)
    unwanted = ("RESOBJ_REQUIRE_NATIVE", "FORCE_CUDA")
    environment = {k: v for k, v in os.environ.items() if k not in unwanted}
    if how == "switched off":
        environment["RESOBJ_NO_EXT"] = "1"
    else:
        # An empty PATH, and no compiler named otherwise.
        empty = tmp_path / "empty"
        empty.mkdir()
        environment["PATH"] = str(empty)
        for name in ("CXX", "CC", "CUDA_HOME", "RESOBJ_NO_EXT"):
            environment.pop(name, None)

    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    installed = subprocess.run(
        [*pip, "--target", str(target), str(source)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert installed.returncode == 0, installed.stdout + installed.stderr
    assert list(target.rglob("*.so")) == []

    environment["PYTHONPATH"] = str(target)
    used = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert used.returncode == 0, used.stderr
    origin, status, ious = used.stdout.splitlines()
    assert Path(origin).is_relative_to(target)
    reason = "RESOBJ_NO_EXT was set" if how == "switched off" else "no C++ compiler found"
    assert status.startswith(f"not built: {reason}")
    # They share one unit square: 1 / (4 + 4 - 1).
    assert json.loads(ious) == [[pytest.approx(1 / 7, rel=1e-6), 0.0]]
