"""Interleaved timing: every round calls each implementation once, in random order."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable
from typing import Any, Protocol

from .comparison import Sample

MIN_SECONDS = 2e-3  # shorter calls are repeated within a round to last this long
MAX_ROUNDS = 60
MAX_REPEATS = 2000


class Clock(Protocol):
    def time(self, call: Callable[[], Any], repeats: int) -> Sample:
        """Mean time of ``repeats`` consecutive calls."""


class CpuClock:
    """Wall time, and processor time of all threads."""

    def time(self, call: Callable[[], Any], repeats: int) -> Sample:
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(repeats):
            call()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return Sample(wall / repeats, cpu / repeats)


def interleave(
    calls: dict[str, Callable[[], Any]],
    clock: Clock,
    *,
    budget: float,
    min_rounds: int,
    seed: int,
) -> dict[str, list[Sample]]:
    """Time ``calls`` until ``budget`` seconds have passed, for at least ``min_rounds`` rounds.

    Each runs once before the first round, to find out how often it must be repeated.

    Returns:
        One sample per round for each call, in the same order of rounds.
    """
    repeats = {name: _repeats(call, clock) for name, call in calls.items()}
    samples: dict[str, list[Sample]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(seed).shuffle
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for done in range(1, MAX_ROUNDS + 1):
            shuffle(order)
            for name in order:
                samples[name].append(clock.time(calls[name], repeats[name]))
            if done >= min_rounds and time.perf_counter() - start > budget:
                break
    finally:
        gc.enable()
    return samples


def _repeats(call: Callable[[], Any], clock: Clock) -> int:
    seconds = clock.time(call, 1).wall
    return max(1, min(MAX_REPEATS, math.ceil(MIN_SECONDS / max(seconds, 1e-9))))
