"""Runs jobs in worker processes and takes their results as they arise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from . import machine, memory
from .worker import CONTEXT_LOST, LEAST_SECONDS, Job, seconds_left

POLL = 1.0  # seconds between looks for new results
MARGIN = 120.0  # seconds beyond a case's limit after which a process that says nothing is killed
# So many processes in a row that finish no case end a job: the machine is broken, not the case.
MOST_FAILURES = 3

Keep = Callable[[dict], None]


def run_job(job: Job, keep: Keep, fail: Callable[[str, str], None]) -> list[str]:
    """Do a job, going on in a new process after one that crashed, hung or lost the GPU.

    ``keep`` gets each result, ``fail`` a key and why it has none.

    Returns:
        The keys for which no time was left.
    """
    left, failures = list(job.keys), 0
    while left and seconds_left(job) > LEAST_SECONDS:
        results: list[dict] = []

        def take(result: dict, results: list[dict] = results) -> None:
            results.append(result)
            keep(result)

        status, problem = ask_worker(replace(job, keys=left), take)
        left = left[len(results) :]
        if status == 0 or seconds_left(job) < 1:  # stopped in the middle of a case
            return left
        failures = 0 if len(results) > 1 else failures + 1
        if status == CONTEXT_LOST and failures < MOST_FAILURES:
            continue
        given_up = left if failures >= MOST_FAILURES else left[:1]
        for key in given_up:
            fail(key, problem)
        left = left[len(given_up) :]
    return left


def ask_worker(job: Job, keep: Keep) -> tuple[int, str]:
    """Run one worker; ``keep`` gets its results. Returns the exit status and what went wrong."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment |= memory.MALLOC[job.malloc]
    # torch takes compiled code from its cache that was made for other vectors, which then computes
    # a part of the numbers or crashes.
    environment |= {"TORCHINDUCTOR_FX_GRAPH_CACHE": "0", "TORCHINDUCTOR_AUTOGRAD_CACHE": "0"}
    environment["RESOBJ_REQUIRE_NATIVE"] = "cpu" if job.device == "cpu" else "cpu,cuda"
    with tempfile.TemporaryDirectory() as folder:
        request, answer, errors = (Path(folder, name) for name in ("job", "results", "errors"))
        request.write_text(json.dumps(asdict(job)))
        answer.touch()
        command = [sys.executable, "-m", "benchmarks.worker", str(request), str(answer)]
        with open(errors, "wb") as stderr:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=machine.REPOSITORY,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
            try:
                status = follow(process, answer, keep, limit=job.case_seconds + MARGIN)
            finally:
                process.kill()  # only one that runs still
                process.wait()
        if status is None:
            return -1, f"no answer within {job.case_seconds + MARGIN:.0f} s"
        text = errors.read_text(errors="replace").strip()
        return status, f"exit status {status}: {text[-2000:]}" if status else ""


def follow(process: subprocess.Popen, answer: Path, keep: Keep, *, limit: float) -> int | None:
    """Hand over each complete line of ``answer``.

    Returns:
        The exit status; None if the process has said nothing for ``limit`` seconds.
    """
    position, heard = 0, time.monotonic()
    while True:
        try:
            status = process.wait(timeout=POLL)
        except subprocess.TimeoutExpired:
            status = None
        with open(answer, "rb") as file:
            file.seek(position)
            whole, newline, _ = file.read().rpartition(b"\n")
        for line in whole.splitlines():
            keep(json.loads(line))
        if newline:
            position, heard = position + len(whole) + 1, time.monotonic()
        if status is not None:
            return status
        if time.monotonic() - heard > limit:
            return None
