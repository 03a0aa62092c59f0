"""Runs as processes of their own, some at a time, each with its folder and its console's text."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resobj_d2.process import FolderInUse, StopRequest, hold_folder, release_folder

__all__ = ["CONSOLE", "Ended", "Job", "run_jobs"]

CONSOLE = "console.txt"
_PERIOD = 0.2  # seconds between two looks at the processes
_LONGEST_REASON = 300  # characters
_SET_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to start.

    Attributes:
        name: for messages.
        folder: of the run; it is made.
        command: words.
        environment: variables, besides this process's.
    """

    name: str
    folder: Path
    command: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What became of a job.

    Attributes:
        job: that ended.
        error: why it failed, in a line; "" where it ended well.
        stopped: whether it was asked to stop, so that it is to go on later.
        seconds: that it took.
    """

    job: Job
    error: str
    stopped: bool
    seconds: float


@dataclass(kw_only=True)
class _Running:
    job: Job
    slot: int
    process: subprocess.Popen
    start: float


def run_jobs(
    jobs: Sequence[Job],
    *,
    at_once: int,
    ended: Callable[[Ended], None],
    slot_environment: Callable[[int], Mapping[str, str]] = lambda slot: {},
    look: Callable[[Sequence[Job]], None] = lambda running: None,
    say: Callable[[str], None] = print,
) -> int:
    """Run jobs, the first ones first.

    The processes are in sessions of their own: a Ctrl-C of the terminal reaches them once, through
    this process, and they get a SIGTERM where it dies.

    Args:
        jobs: to run.
        at_once: how many at a time.
        ended: called after each.
        slot_environment: variables by slot, 0 to ``at_once`` - 1.
        look: called a few times a second with the jobs that run.
        say: prints a line.

    Returns:
        The signal that was asked to stop with; 0 for none. Jobs that had begun have ended.
    """
    waiting, running = list(jobs), []
    told: set[str] = set()
    passed_on = False
    request = StopRequest(
        message="Stopping: trainings that run write a checkpoint first. Press Ctrl-C again to stop "
        "at once."
    )
    with request.listening():
        while (waiting and not request.signum) or running:
            while waiting and len(running) < at_once and not request.signum:
                position = next((k for k, job in enumerate(waiting) if _is_free(job.folder)), None)
                if position is None:
                    _say_once(waiting[0], told, say)
                    break
                slot = min(set(range(at_once)) - {one.slot for one in running})
                running.append(_start(waiting.pop(position), slot, slot_environment(slot)))
            if request.signum and not passed_on:
                passed_on = True
                for one in running:
                    with contextlib.suppress(ProcessLookupError):
                        one.process.send_signal(request.signum)
            time.sleep(_PERIOD)
            for one in [x for x in running if x.process.poll() is not None]:
                running.remove(one)
                ended(_end(one, asked=bool(request.signum)))
            look([one.job for one in running])
    return request.signum


def _is_free(folder: Path) -> bool:
    """Whether no process of an earlier study, killed itself, still writes there."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        hold_folder(folder)
    except FolderInUse:
        return False
    release_folder(folder)
    return True


def _say_once(job: Job, told: set[str], say: Callable[[str], None]) -> None:
    if job.name not in told:
        told.add(job.name)
        say(f"waiting for {job.folder}: another process still writes there")


def _start(job: Job, slot: int, environment: Mapping[str, str]) -> _Running:
    with open(job.folder / CONSOLE, "ab") as console:
        process = subprocess.Popen(
            list(job.command),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, **job.environment},
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    return _Running(job=job, slot=slot, process=process, start=time.monotonic())


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """In the new process: a SIGTERM when the study dies, in whatever way."""
    if _libc is not None:
        _libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _end(one: _Running, *, asked: bool) -> Ended:
    code = one.process.returncode
    return Ended(
        job=one.job,
        error=_reason(one.job, code) if code else "",
        stopped=bool(code) and asked,
        seconds=time.monotonic() - one.start,
    )


def _reason(job: Job, code: int) -> str:
    if code < 0:
        hint = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
        return f"the process was ended by {signal.Signals(-code).name}{hint}"
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        return "the process was asked to stop from outside the study"
    text = (job.folder / CONSOLE).read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines[-20:] if line.startswith("error: ")]
    last = (errors or lines or [f"exit status {code}"])[-1]
    return " ".join(last.removeprefix("error: ").split())[:_LONGEST_REASON]
