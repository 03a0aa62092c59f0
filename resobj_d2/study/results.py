"""``results.jsonl``: a line for each run, which files of several machines can be merged from."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from .fingerprint import key_of
from .plan import StudyError

__all__ = ["DONE", "FAILED", "Result", "append_result", "by_key", "by_rank", "read_results"]

logger = logging.getLogger(__name__)

DONE = "done"
"""The status of a run with results."""
FAILED = "failed"
"""That of one without, and why is in its line."""
_TYPES = {
    "key": str,
    "study": str,
    "dataset": str,
    "method": str,
    "seed": int,
    "status": str,
    "metric": str,
    "decides": dict,
    "error": str,
    "results": dict,
    "curve": list,
    "iterations": int,
    "seconds": (int, float, type(None)),
    "finished": str,
    "revision": str,
    "environment": dict,
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """A line of the file.

    Attributes:
        key: of ``decides``.
        study, dataset, method, seed: the run's place in its study.
        status: :data:`DONE` or :data:`FAILED`.
        metric: path of the result that the study compares.
        decides: what the result depends on; see :class:`.runs.Run`.
        error: why it failed, in a line.
        results: of the last evaluation, by path, as "bbox/AP".
        curve: pairs of iteration and metric, of all evaluations.
        iterations: of the training.
        seconds: of training and evaluation; None of a run that was interrupted in between.
        finished: UTC.
        revision, environment: of the code and machine, for the record.
    """

    key: str
    study: str
    dataset: str
    method: str
    seed: int
    status: str
    metric: str
    decides: Mapping[str, object]
    error: str = ""
    results: Mapping[str, float] = field(default_factory=dict)
    curve: list = field(default_factory=list)
    iterations: int = 0
    seconds: float | None = None
    finished: str = ""
    revision: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """Of the metric."""
        return self.results[self.metric]


def read_results(path: str | os.PathLike) -> list[Result]:
    """The results of a file; none where it is missing.

    A last line without its end, which a killed process leaves, is left out: its run goes on.

    Raises:
        StudyError: a line is not a result, or its key does not belong to it.
    """
    file = Path(path)
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    if lines.pop():
        logger.warning("%s: the last line is incomplete and left out", file)
    return [
        _parse(line, f"{file}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _parse(line: str, where: str) -> Result:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise StudyError(f"{where}: this is no json") from None
    names = {one.name for one in fields(Result)}
    if not isinstance(content, dict) or not names >= set(content):
        raise StudyError(f"{where}: this is not a result of a study")
    for name, kind in _TYPES.items():
        if name in content and not isinstance(content[name], kind):
            raise StudyError(f"{where}: {name} is {content[name]!r:.80}")
    try:
        result = Result(**content)
    except TypeError:
        raise StudyError(f"{where}: this is not a result of a study") from None
    if key_of(result.decides) != result.key:
        raise StudyError(f"{where}: the key does not belong to the line, which was changed")
    if result.status not in (DONE, FAILED):
        raise StudyError(f"{where}: status is {result.status!r:.80}, not {DONE} or {FAILED}")
    _check_figures(result, where)
    return result


def _check_figures(result: Result, where: str) -> None:
    if result.status == DONE and result.metric not in result.results:
        raise StudyError(f"{where}: there is no {result.metric}")
    if not all(map(_is_number, result.results.values())):
        raise StudyError(f"{where}: a result is not a number")
    if not all(map(_is_point, result.curve)):
        raise StudyError(f"{where}: the curve has other things than pairs of numbers")


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < math.inf  # which nan is not, and an int of any length is


def _is_point(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def append_result(path: str | os.PathLike, result: Result) -> None:
    """Add a line, which has reached the disk when this returns. One process writes a file."""
    line = json.dumps(asdict(result), sort_keys=True) + "\n"
    with open(path, "ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        kept = file.read().rfind(b"\n") + 1
        if kept < end:  # what a killed process has left
            file.truncate(kept)
        file.seek(0, os.SEEK_END)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def by_key(results: Iterable[Result]) -> dict[str, Result]:
    """One result for each key: a run that is done counts, then the one that finished last."""
    found: dict[str, Result] = {}
    for result in results:
        other = found.get(result.key)
        if other is None or by_rank(result) >= by_rank(other):
            found[result.key] = result
    return found


def by_rank(result: Result) -> tuple[bool, str]:
    """What results are ordered by: a run that is done counts more, then the later one."""
    return result.status == DONE, result.finished
