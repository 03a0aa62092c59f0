"""Everything that needs a GPU in one command: ``python -m benchmarks.gpu_check``.

Builds with CUDA required, runs the CUDA tests, compute-sanitizer on the operators' tests and the
benchmarks, and writes ``benchmarks/results/<gpu>.json`` and the tables of ``docs/benchmarks.md``.
It stops at the first failing stage, shows its output and exits with 1; only after a missed target
are the tables still written. Without a GPU it exits with 2 before doing anything. ``make
gpu-check`` sets up the environment first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field

from .machine import REPOSITORY

SHOWN_LINES = 60
SANITIZER_FAILED = "9"  # its exit status for errors it found, unlike those of pytest
# Torch's own kernels are not ours to check, and there are many of them.
ONLY_OURS = ["--kernel-name", "kernel_substring=resobj"]


@dataclass
class Stage:
    """A command that must succeed.

    ``skip`` says why the stage is skipped; "" if it is not. If it fails, later stages still run if
    ``go_on``.
    """

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    skip: str = ""
    go_on: bool = False


def find_gpu() -> tuple[str, str]:
    """Compute capability of the first GPU, for example "9.0", or "" and why there is none."""
    import torch

    if torch.version.cuda is None:
        return "", f"torch {torch.__version__} is built without CUDA; install a CUDA build"
    if not torch.cuda.is_available():
        return "", "torch sees no NVIDIA GPU on this machine (try nvidia-smi)"
    return "{}.{}".format(*torch.cuda.get_device_capability(0)), ""


def find_sanitizer() -> str:
    """Path of compute-sanitizer, or ""."""
    folders = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")] + [
        "/usr/local/cuda"
    ]
    paths = [os.environ.get("PATH", ""), *(os.path.join(f, "bin") for f in folders if f)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(paths)) or ""


def stages(capability: str, sanitizer: str, *, quick: bool) -> list[Stage]:
    """The stages to run, in order."""
    python = sys.executable
    native = {"RESOBJ_REQUIRE_NATIVE": "cpu,cuda"}
    build = {"FORCE_CUDA": "1"}
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        build["TORCH_CUDA_ARCH_LIST"] = capability
    every_mark = ["-m", "slow or not slow"]
    # Without torch's cache every tensor is a separate allocation, whose bounds memcheck knows.
    uncached = {**native, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    sanitize = [sanitizer, "--error-exitcode", SANITIZER_FAILED, *ONLY_OURS]
    ops_tests = [python, "-m", "pytest", "-q", "-x", "tests/ops", "-k", "native-cuda"]
    # Some of torch's calls fail by design, for example to find out what a pointer is.
    memcheck = [*sanitize, "--tool", "memcheck", "--report-api-errors", "no", *ops_tests]
    racecheck = [*sanitize, "--tool", "racecheck", *ops_tests]
    no_sanitizer = "" if sanitizer else "compute-sanitizer was not found"
    measure = [python, "-m", "benchmarks", "--device", "cuda", "--json", "benchmarks/results"]
    page = "docs/benchmarks.md"
    return [
        Stage("build", [python, "setup.py", "build_ext", "--inplace"], build),
        Stage("doctor", [python, "-m", "resobj_d2.doctor"], native),
        Stage(
            "CUDA tests",
            [python, "-m", "pytest", "-q", *every_mark, "tests", "-k", "cuda"],
            native,
        ),
        Stage("memcheck", memcheck, uncached, no_sanitizer),
        Stage("racecheck", racecheck, native, no_sanitizer),
        Stage("benchmarks", measure + (["--quick"] if quick else ["--check"]), native, go_on=True),
        Stage("tables", [python, "-m", "benchmarks.table", "--write", page]),
    ]


def run(plan: list[Stage]) -> int:
    """Run the stages in order; returns 0 if all succeed, else 1."""
    failed = []
    for stage in plan:
        if stage.skip:
            print(f"skipped: {stage.name}: {stage.skip}", flush=True)
        elif not succeeds(stage):
            failed.append(stage.name)
            if not stage.go_on:
                break
    print(f"gpu-check failed: {', '.join(failed)}" if failed else "gpu-check passed")
    return 1 if failed else 0


def succeeds(stage: Stage) -> bool:
    """Run a stage and report the outcome, with its output only if it failed."""
    print(f"now: {stage.name}: {' '.join(stage.command)}", flush=True)
    start = time.monotonic()
    done = subprocess.run(
        stage.command,
        env={**os.environ, **stage.environment},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.monotonic() - start
    lines = done.stdout.rstrip().splitlines()
    if done.returncode == 0:
        print(f"ok: {stage.name}, {seconds:.0f} s: {lines[-1] if lines else ''}", flush=True)
        return True
    print("\n".join(lines[-SHOWN_LINES:]))
    print(f"FAILED: {stage.name}, exit status {done.returncode}, after {seconds:.0f} s", flush=True)
    return False


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short benchmarks, targets unchecked")
    parser.add_argument("--skip", default="", help="stages to skip, for example build,doctor")
    options = parser.parse_args(argv)
    capability, problem = find_gpu()
    if problem:
        print(f"error: gpu-check needs a GPU: {problem}", file=sys.stderr)
        return 2
    plan = stages(capability, find_sanitizer(), quick=options.quick)
    unwanted = [name.strip() for name in options.skip.split(",") if name.strip()]
    unknown = set(unwanted) - {stage.name for stage in plan}
    if unknown:
        known = ", ".join(stage.name for stage in plan)
        print(f"error: --skip: no stage is called {sorted(unknown)}; known are {known}")
        return 2
    for stage in plan:
        if stage.name in unwanted:
            stage.skip = "as asked"
    return run(plan)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
