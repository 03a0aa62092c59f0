"""The CUDA kernels, run on the CPU by ``tests/cuda_emulation``.

This covers indexing, barriers, warp operations and results, but not a GPU's memory model, streams,
graphs, or ``exp`` and ``log``.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.cuda_emulation.build import build, compile_program, translate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler"),
]

# Each thread of the kernel reads the number of the opposite one; FIRST and SECOND stand for
# statements, which are these.
BARRIER = "__syncthreads();"
VOTE = "if (thread < 9) opposite_is = __any_sync(0xffffffffu, thread == 1);"
WARP_OPERATIONS = {  # and what the last thread gets
    # In the second warp 63 - thread is 0 for the last lane, which has no lane after it.
    "__shfl_down_sync(0xffffffffu, opposite, 1)": 0,
    "__shfl_xor_sync(0xffffffffu, opposite, 3)": 3,
    "static_cast<int>(__ballot_sync(0xffffffffu, opposite < 3))": -(1 << 29),
    "__popc(__ballot_sync(0xffffffffu, opposite % 4 == 0))": 8,
    "__any_sync(0xffffffffu, opposite == 40)": 0,
    "__syncthreads_or(opposite == 40)": 1,
}
VARIANTS = {
    "a barrier": (BARRIER, ""),
    "no barrier": ("", ""),
    "some threads": ("if (thread == 3) return; __syncthreads();", ""),
    "two barriers": ("if (thread < 9) {\n __syncthreads();\n } else {\n __syncthreads();\n }", ""),
    "part of a warp": ("bool opposite_is; " + VOTE, ""),
    **{x: (BARRIER, f"numbers[thread] = {x}; return;") for x in WARP_OPERATIONS},
}
# All in one program, since most of what compiling takes goes into the headers.
HEAD = """
#include <cuda_runtime.h>
#include <cstdio>
#include <cstdlib>
"""
VARIANT = """
namespace NAME {

__global__ void exchange(int* numbers) {
  __shared__ int shared[64];
  const int thread = static_cast<int>(threadIdx.x);
  shared[thread] = numbers[thread];
  FIRST
  const int opposite = shared[63 - thread];
  SECOND
  numbers[thread] = opposite;
}

void run() {
  int numbers[64];
  for (int i = 0; i < 64; ++i) numbers[i] = i;
  try {
    exchange<<<1, 64, 0, nullptr>>>(numbers);
  } catch (const std::logic_error& error) {
    std::puts(error.what());
    return;
  }
  int right = 0;
  for (int i = 0; i < 64; ++i) right += numbers[i] == 63 - i;
  std::printf("%d right, last %d\\n", right, numbers[63]);
}

}  // namespace NAME
"""
MAIN = """
int main(int, char** arguments) {
  void (*variants[])() = {VARIANTS};
  variants[std::atoi(arguments[1])]();
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    source, names = HEAD, [f"variant{i}" for i in range(len(VARIANTS))]
    for name, (first, second) in zip(names, VARIANTS.values(), strict=True):
        variant = VARIANT.replace("NAME", name)
        source += variant.replace("FIRST", first).replace("SECOND", second)
    source += MAIN.replace("VARIANTS", ", ".join(f"{name}::run" for name in names))
    return compile_program(source, tmp_path_factory.mktemp("program") / "program")


@pytest.fixture
def outcome(program):
    def run(variant, order="forward"):
        command = [program, str(list(VARIANTS).index(variant))]
        return subprocess.run(
            command, env={"EMULATION_ORDER": order}, capture_output=True, text=True, timeout=60
        ).stdout.strip()

    return run


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
def test_a_barrier_orders_shared_memory_accesses(outcome, order):
    assert outcome("a barrier", order=order) == "64 right, last 0"


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
def test_a_missing_barrier_gives_wrong_results(outcome, order):
    match = re.match(r"(\d+) right", outcome("no barrier", order=order))
    assert int(match[1]) < 64


def test_a_barrier_missed_by_some_threads_is_an_error(outcome):
    assert "not all threads came to" in outcome("some threads")


def test_threads_at_different_barriers_are_an_error(outcome):
    assert "different places" in outcome("two barriers")


def test_a_warp_operation_by_part_of_a_warp_is_an_error(outcome):
    assert "not all threads came to" in outcome("part of a warp")


@pytest.mark.parametrize("value", WARP_OPERATIONS)
def test_warp_operations(outcome, value):
    assert outcome(value).endswith(f"last {WARP_OPERATIONS[value]}")


def test_a_kernel_launch_is_rewritten_to_a_call():
    source = "  add<float, Map<int, 2>>\n  <<<blocks(n), 32, 0, stream>>>(n, x);"
    assert translate(source) == (
        "  emulation::Launch(blocks(n), 32, 0, stream)"
        "([](auto... a) { add<float, Map<int, 2>>(a...); }, n, x);"
    )


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulation") / "copy"
    build(folder)
    return folder


def test_operators(emulated, warm_python):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "tests.cuda_emulation.poison", "tests/ops", "-k", "native-cpu"]
    environment = {**os.environ, "EMULATION_ORDER": "shuffled", "RESOBJ_REQUIRE_NATIVE": "cpu"}
    environment["PYTHONPATH"] = str(emulated)
    result = warm_python.run(command, cwd=emulated, env=environment, timeout=1200)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 300
