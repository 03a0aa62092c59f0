"""Memory bandwidth of this machine, the bound of any operator on large inputs."""

from __future__ import annotations

import mmap
import time

import torch

SIZE = 256 * 2**20  # bytes; larger than any cache
ROUNDS = 5


def bandwidth(device: torch.device) -> dict[str, float]:
    """Bytes per second when reading, filling and copying; a copy counts both directions.

    ``fresh_fill`` (CPU only) writes to memory just obtained from the system, with page faults.
    """
    source = torch.ones(SIZE // 4, device=device)
    target = torch.ones(SIZE // 4, device=device)
    result = {
        "read": SIZE / _seconds(source.max, device),
        "fill": SIZE / _seconds(lambda: target.fill_(2.0), device),
        "copy": 2 * SIZE / _seconds(lambda: target.copy_(source), device),
    }
    if device.type == "cpu":
        result["fresh_fill"] = SIZE / _seconds(_fill_fresh, device)
    return result


def share(reads: int, writes: int, seconds: float, rates: dict[str, float]) -> float | None:
    """Time that the memory traffic alone needs, as a fraction of ``seconds``.

    Above 1 if the inputs stay in a cache between calls. None without traffic.
    """
    floor = reads / rates["read"] + writes / rates["fill"]
    return floor / seconds if floor > 0 else None


def _fill_fresh() -> None:
    with mmap.mmap(-1, SIZE) as fresh:
        tensor = torch.frombuffer(fresh, dtype=torch.float32)
        tensor.fill_(1.0)
        del tensor  # the mapping cannot close while it is in use


def _seconds(call, device: torch.device) -> float:
    """The shortest of several calls."""
    times = []
    for _ in range(ROUNDS):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
