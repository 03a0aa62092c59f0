"""Commands with time limits, whose output goes to log files as it arises."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from benchmarks.machine import REPOSITORY

LEAST_SECONDS = 10  # with less time left a stage is not begun
GRACE = 5.0  # seconds between the interrupt and the end of a stage that takes too long
SHOWN_LINES = 200  # of a stage's report


def last_line(text: str) -> list[str]:
    """The report of a stage unless it has its own: the last line of its output."""
    return text.rstrip().splitlines()[-1:]


@dataclass(kw_only=True)
class Stage:
    """One command.

    Attributes:
        name: also that of its log file, with hyphens for spaces.
        seconds: limit; less if less is left in all.
        environment: variables beside those of this process.
        report: from the command's output to what the summary shows of it.
    """

    name: str
    command: list[str]
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    report: Callable[[str], list[str]] = last_line


class Run:
    """Runs stages and writes ``summary.txt``; a stage that fails does not stop the next.

    Args:
        output: folder for the summary and the logs; made if need be.
        seconds: limit in all, from now on.
    """

    def __init__(self, output: Path, seconds: float) -> None:
        self.output = output
        self.end = time.monotonic() + seconds
        self.failed: list[str] = []
        self.lock = Lock()  # of stages that run side by side
        output.mkdir(parents=True, exist_ok=True)
        (output / "summary.txt").write_text("")

    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()

    def say(self, line: str) -> None:
        """Print a line and add it to the summary."""
        print(line, flush=True)
        with open(self.output / "summary.txt", "a") as summary:
            summary.write(line + "\n")

    def run(self, stage: Stage) -> bool:
        """Run a stage; whether it ended well."""
        limit = min(stage.seconds, self.left())
        if limit < LEAST_SECONDS:
            self.fail(stage, "SKIPPED", "out of time")
            return False
        start = time.monotonic()
        log = self.output / f"{stage.name.replace(' ', '-')}.log"
        with open(log, "ab") as output:
            output.write(f"##### at most {limit:.0f} s: {' '.join(stage.command)}\n".encode())
            output.flush()
            begin = output.tell()
            status = execute(stage, output, limit)
        text = log.read_bytes()[begin:].decode(errors="replace")
        seconds = f"{time.monotonic() - start:.0f} s"
        with self.lock:
            if status == 0:
                self.say(f"ok {stage.name}, {seconds}")
            elif status is None:
                self.fail(stage, "TIMEOUT", f"stopped after {seconds}")
            else:
                self.fail(stage, "FAILED", f"exit status {status}, {seconds}, see {log.name}")
            for line in stage.report(text)[:SHOWN_LINES]:
                self.say(f"   {line[:240]}")
        return status == 0

    def fail(self, stage: Stage, how: str, why: str) -> None:
        self.failed.append(stage.name)
        self.say(f"{how} {stage.name}: {why}")

    def run_together(self, stages: Sequence[Stage]) -> None:
        """Run stages side by side: those whose times do not matter."""
        with ThreadPoolExecutor(max(1, len(stages))) as pool:
            list(pool.map(self.run, stages))


def execute(stage: Stage, output, limit: float) -> int | None:
    """The exit status of the command, None if it was stopped with all that it had started."""
    try:
        process = subprocess.Popen(
            stage.command,
            env={**os.environ, **stage.environment},
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        output.write(f"{error}\n".encode())
        return 127
    try:
        return process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        stop(process)


def stop(process: subprocess.Popen) -> None:
    """End a process and its children, which are of its group."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if number == signal.SIGKILL or process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)
