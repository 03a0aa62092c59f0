"""Kernels against references on random calls, in a process of their own: one that ends is noticed.

``RESOBJ_FUZZ_CALLS`` sets their number; ``python -m tests.ops.fuzz --help`` for more.
"""

import os
import re
import sys

import pytest

from resobj_d2 import ops
from tests.ops import fuzz
from tests.ops.fuzz_arguments import ARGUMENTS
from tests.ops.operator_cases import CASES, DIFFERENTIABLE

CALLS = int(os.environ.get("RESOBJ_FUZZ_CALLS", "20000"))


def test_every_operator_is_called():
    assert set(ARGUMENTS) == set(CASES)
    assert {name: CASES[name].gradients for name in DIFFERENTIABLE} == fuzz.GRADIENTS


@pytest.mark.slow
def test_random_calls(tmp_path, warm_python):
    if ops.native_status()["cpu"] != "native":
        pytest.skip("there are no kernels to compare with")
    progress = tmp_path / "progress"
    command = [sys.executable, "-m", "tests.ops.fuzz", "--calls", str(CALLS)]
    result = warm_python.run([*command, "--progress", str(progress)])
    last = int.from_bytes(progress.read_bytes(), "little") if progress.exists() else None
    assert result.returncode == 0, f"call {last}: {result.stdout}{result.stderr[-5000:]}"
    compared = {name: int(count) for name, count in re.findall(r"(\w+) (\d+)", result.stdout)}
    assert set(compared) == set(CASES)
    assert min(compared.values()) > CALLS / len(CASES) / 10
