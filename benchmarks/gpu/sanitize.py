"""The operators' tests under compute-sanitizer, a process for each file.

    python -m benchmarks.gpu.sanitize memcheck --seconds 85 --jobs 14

The output of a file is printed when it ends, and then a line that begins with the tool's name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from benchmarks.machine import REPOSITORY
from resobj_d2.command import CommandParser

TOOLS = ("memcheck", "racecheck")
FOUND_ERRORS = 9  # the sanitizer's exit status for them, unlike those of pytest
NO_TESTS = 5  # pytest's
# Torch's own kernels are not ours to check, and there are many of them.
ONLY_OURS = ["--kernel-name", "kernel_substring=resobj"]
# What to select of a file whose other tests do not concern memory.
SELECTED = {"test_every_operator.py": "not_contiguous or empty or half_precision"}


def find_sanitizer() -> str:
    """Path of compute-sanitizer, or ""."""
    folders = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")] + [
        "/usr/local/cuda"
    ]
    paths = [os.environ.get("PATH", ""), *(os.path.join(f, "bin") for f in folders if f)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(paths)) or ""


def files_of_tests() -> list[Path]:
    """Those with tests on a GPU, the longest first, as they decide when all are done."""
    files = (REPOSITORY / "tests" / "ops").glob("test_*.py")
    wanted = ("impl", "native_device", "mark.cuda")
    found = [path for path in files if any(name in path.read_text() for name in wanted)]
    return sorted(found, key=lambda path: (-path.stat().st_size, path.name))


def command(sanitizer: str, tool: str, path: Path) -> list[str]:
    options = ["--error-exitcode", str(FOUND_ERRORS), "--print-limit", "20", *ONLY_OURS]
    if tool == "memcheck":
        # Some of torch's calls fail by design, for example to find out what a pointer is.
        options += ["--report-api-errors", "no"]
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
    pytest += ["-m", "cuda and not slow"]
    if path.name in SELECTED:
        pytest += ["-k", SELECTED[path.name]]
    return [sanitizer, "--tool", tool, *options, *pytest]


def environment(tool: str) -> dict[str, str]:
    # Without torch's cache every tensor is a separate allocation, whose bounds memcheck knows.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool == "memcheck" else {}
    return {**os.environ, "OMP_NUM_THREADS": "1", **uncached}


def verdict(status: int | None, text: str) -> str:
    """What a file's output amounts to; "" without tests on a GPU."""
    if status == NO_TESTS:
        return ""
    if status is None:
        return "FAILED, out of time"
    lines = text.splitlines()
    ends = [line for line in lines if " passed" in line or " failed" in line][-1:]
    ends += [line.strip("= ") for line in lines if "SUMMARY" in line][-1:]
    how = {0: "clean", FOUND_ERRORS: "FAILED, errors found"}.get(status, f"FAILED, status {status}")
    # All skipped would be no check at all.
    if status == 0 and " passed" not in text:
        how = "FAILED, no test was run"
    return ": ".join([how, *ends])


def check(sanitizer: str, tool: str, path: Path, end: float) -> tuple[int | None, str]:
    """Exit status, None if it had to be stopped, and output."""
    left = end - time.monotonic()
    if left < 1:
        return None, ""
    process = subprocess.Popen(
        command(sanitizer, tool, path),
        cwd=REPOSITORY,
        env=environment(tool),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        text, _ = process.communicate(timeout=left)
        return process.returncode, text
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # pytest then says how far it came
        with contextlib.suppress(subprocess.TimeoutExpired):
            text, _ = process.communicate(timeout=3)
            return None, text
        process.kill()
        return None, ""


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="python -m benchmarks.gpu.sanitize", description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    options = parser.parse_args(argv)
    sanitizer = find_sanitizer()
    if not sanitizer:
        print("error: compute-sanitizer was not found; it is part of the CUDA toolkit")
        return 2
    end, lock, failed = time.monotonic() + options.seconds, Lock(), []

    def work(path: Path) -> None:
        status, text = check(sanitizer, options.tool, path, end)
        said = verdict(status, text)
        with lock:
            if said:
                print(f"{text}\n{options.tool} {path.name}: {said}", flush=True)
            if "FAILED" in said:
                failed.append(path.name)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(work, files_of_tests()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
