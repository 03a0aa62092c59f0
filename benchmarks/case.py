"""What is measured: one of our operators at one size, and what it is compared with."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MIB = 2**20

Call = Callable[[], Any]
# Given a case's inputs, returns the call to time. Conversions that a user's code would already have
# done happen before that call. An ImportError means that the peer is not installed.
Bind = Callable[..., Call]


@dataclass(frozen=True)
class Target:
    """The smallest acceptable ratio of the peer's time to ours; None for no target.

    ``cpu`` is for one thread; ``avx2`` replaces it on a processor without AVX-512, and with default
    malloc in a case that is measured with both. With two threads three quarters of it suffice, as
    long as that is more than 1: the peers' eager code gains more from threads than a millisecond
    call does.
    """

    cpu: float | None = None
    cuda: float | None = None
    avx2: float | None = None

    def at(self, device: str, threads: int, instructions: str | None = None) -> float | None:
        value = self.cuda if device == "cuda" else self.cpu
        if device == "cpu" and instructions == "avx2" and self.avx2 is not None:
            value = self.avx2
        if value is None or device == "cuda" or threads == 1:
            return value
        return max(0.75 * value, min(value, 1.0))


@dataclass(frozen=True)
class Case:
    """One operator at one size.

    Attributes:
        id: row in the table of targets, for example ``"M1"``.
        size: distinguishes the cases of one id; without a comma.
        make: ``(device, seed)`` to the tuple of inputs, the same on every run.
        ours: binds the inputs to our call.
        peers: the same for each peer's call, by the peer's name.
        verify: called with our result and a peer's; raises AssertionError if they differ.
        targets: by the peer's name.
        peak_mb: maximum MiB that our call may add to the memory in use, including its result.
        reads, writes: minimum number of bytes moved between memory and processor.
        devices: devices on which the case makes sense.
        malloc: allocator settings to measure under, see ``benchmarks.memory``.
        max_threads: maximum number of threads to measure.
        min_rounds: lower it if one round takes long.
        slow: skipped by ``--quick``.
        process: cases with the same name run in one process; empty for its own process.
        metrics: ``(our result, {peer: its result})`` to named numbers to report.
        limits: maximum of a metric, by name.
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
            raise ValueError(f"{self.key}: --only cannot select a name with a comma")
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
    """Those listed in ``only`` by id or key (all if empty) that make sense on ``device``.

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


# What a GPU's minutes are spent on first: one size of each operator, the whole detector, the other
# sizes; compiled peers, which take long to compile, come last.
FIRST = [
    "R1 2 x 201600 T=2", "M1 201600 x 50", "M3 201600 x 50", "F1", "F2", "L1 403200 x 80", "L2 500",
    "L2 403200", "L3 403200", "P1 201600 x 50", "P2", "N1 5000 of 80 classes", "N2", "T1", "T2",
    "M1", "M3", "M4", "P1", "N1", "L2", "L3", "R1", "G", "L1",
]  # fmt: skip


def most_valuable_first(cases: list[Case]) -> list[Case]:
    """In the order of ``FIRST``, whose entries are ids or keys; then all others."""

    def place(case: Case) -> tuple[bool, int]:
        found = [i for i, name in enumerate(FIRST) if name in (case.id, case.key)]
        return "compile" in " ".join(case.peers), min(found, default=len(FIRST))

    return sorted(cases, key=place)
