"""What is measured: an operator of ours at one size, and what it is compared with."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MIB = 2**20

Call = Callable[[], Any]
# Given a case's inputs, returns the call to time; conversions that a user's code would have behind
# it already belong in front of that call. An ImportError means that the peer is not installed.
Bind = Callable[..., Call]


@dataclass(frozen=True)
class Target:
    """The smallest acceptable ratio of the peer's time to ours; None is no promise.

    ``cpu`` is for one thread. Two threads reach three quarters of it, as long as that is more
    than 1: the peers' eager code gains more from threads than a call of a millisecond does.
    """

    cpu: float | None = None
    cuda: float | None = None

    def at(self, device: str, threads: int) -> float | None:
        value = self.cuda if device == "cuda" else self.cpu
        if value is None or device == "cuda" or threads == 1:
            return value
        return max(0.75 * value, min(value, 1.0))


@dataclass(frozen=True)
class Case:
    """One operator at one size.

    Attributes:
        id: row of the table of targets, for example ``"M1"``.
        size: what distinguishes the cases of one id, without a comma.
        make: ``(device, seed)`` to the tuple of inputs, the same on every run.
        ours: binds the inputs to our call.
        peers: binds them to each peer's call, by the peer's name.
        verify: called with our result and a peer's; raises AssertionError where they differ.
        targets: by the peer's name.
        peak_mb: most MiB that our call may add to the memory in use, its result included.
        reads, writes: bytes that have to move between memory and processor at the least.
        devices: where the case makes sense.
        malloc: allocator settings to measure under, see ``benchmarks.memory``.
        max_threads: measure at this many threads at most.
        min_rounds: fewer where one round takes long.
        slow: left out of ``--quick``.
        process: cases of the same name run in one process; empty: one of its own.
        metrics: ``(our result, {peer: its result})`` to named numbers to report.
        limits: most that a metric may be.
    """

    id: str
    size: str
    make: Callable[[Any, int], tuple]
    ours: Bind
    peers: dict[str, Bind]
    verify: Callable[[Any, Any], None]
    targets: dict[str, Target] = field(default_factory=dict)
    peak_mb: float | None = None
    reads: int = 0
    writes: int = 0
    devices: tuple[str, ...] = ("cpu", "cuda")
    malloc: tuple[str, ...] = ("warm",)
    max_threads: int = 1024
    min_rounds: int = 5
    slow: bool = False
    process: str = ""
    metrics: Callable[[Any, dict[str, Any]], dict[str, float]] | None = None
    limits: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "," in self.key:
            raise ValueError(f"{self.key}: a comma in a name cannot be asked for by --only")
        unknown = set(self.targets) - set(self.peers)
        if unknown:
            raise ValueError(f"{self.key}: targets for peers that it does not have: {unknown}")

    @property
    def key(self) -> str:
        return f"{self.id} {self.size}"


def all_cases() -> list[Case]:
    """The cases of every module in ``benchmarks/cases``, each a list named ``CASES``."""
    package = importlib.import_module("benchmarks.cases")
    cases: list[Case] = []
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        cases += importlib.import_module(f"benchmarks.cases.{module.name}").CASES
    keys = [case.key for case in cases]
    repeated = {key for key in keys if keys.count(key) > 1}
    if repeated:
        raise ValueError(f"several cases are called {sorted(repeated)}")
    return cases


def select_cases(cases: list[Case], *, only: list[str], device: str, quick: bool) -> list[Case]:
    """Those of the ids or keys ``only`` (all if empty) that make sense on ``device``.

    Raises:
        ValueError: an entry of ``only`` selects nothing.
    """
    for name in only:
        if not any(name in (case.id, case.key) for case in cases):
            known = ", ".join(dict.fromkeys(case.id for case in cases))
            raise ValueError(f"no case is called {name!r}; the ids are {known}")
    return [
        case
        for case in cases
        if device in case.devices
        and (not only or case.id in only or case.key in only)
        and not (quick and case.slow)
    ]
