"""How far a study is, and how long the rest will take."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .pool import Job

__all__ = ["Progress", "iteration_of", "readable_time"]

_TAIL = 1 << 15  # bytes of metrics.json that hold its last line
_ITERATION = re.compile(rb'"iteration": (\d+)')
_PERIOD = 60.0  # seconds between two lines about the runs in progress


def iteration_of(folder: Path) -> int:
    """Iterations of the training in a folder that ``metrics.json`` knows of."""
    try:
        with open(folder / "metrics.json", "rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            found = _ITERATION.findall(file.read())
    except OSError:
        return 0
    return int(found[-1]) + 1 if found else 0


def readable_time(seconds: float) -> str:
    """As "45 s", "12 min" or "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """Counts iterations of this session, from which the time of the rest follows.

    Args:
        lengths: iterations of each job, by its name.
        folders: of the jobs, by name.
        done: runs that need not run.
        total: runs in all.
        say: prints a line.
    """

    def __init__(
        self,
        *,
        lengths: Mapping[str, int],
        folders: Mapping[str, Path],
        done: int,
        total: int,
        say: Callable[[str], None],
    ) -> None:
        self.lengths = lengths
        self.begun = {n: min(iteration_of(folders[n]), length) for n, length in lengths.items()}
        self.left = sum(lengths[name] - self.begun[name] for name in lengths)
        self.passed = 0
        self.done, self.total = done, total
        self.say = say
        self.start = self._last = time.monotonic()
        self._running: list[Job] = []

    def ended(self, job: Job, text: str) -> None:
        """A job has ended, well or not: tell it.

        Args:
            job: the job.
            text: what came out.
        """
        self.passed += self.lengths[job.name] - self.begun[job.name]
        self.done += 1
        self._running = [one for one in self._running if one is not job]
        self._tell(f"[{self.done}/{self.total}] {job.name}: {text}")

    def look(self, running: Sequence[Job]) -> None:
        """From time to time tell how far the running ones are."""
        self._running = list(running)
        if time.monotonic() - self._last >= _PERIOD and running:
            where = [
                f"{job.name} {iteration_of(job.folder)}/{self.lengths[job.name]}" for job in running
            ]
            self._tell(f"running: {'; '.join(where)}")

    def _tell(self, text: str) -> None:
        self._last = time.monotonic()
        passed = self.passed + sum(
            max(0, iteration_of(job.folder) - self.begun[job.name]) for job in self._running
        )
        rest = ""
        if passed and passed < self.left:
            seconds = (self.left - passed) * (self._last - self.start) / passed
            rest = f"; about {readable_time(seconds)} left"
        self.say(text + rest)
