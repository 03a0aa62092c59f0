"""From interleaved timings to a ratio and its reliability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Above these limits a measurement was disturbed, most likely by other programs.
MAX_WALL_PER_CPU = 1.1
MAX_SPREAD = 1.3


@dataclass(frozen=True)
class Sample:
    """Seconds per call: wall time, and processor time (0 if unknown)."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Comparison:
    """How many times longer the peer takes than we do.

    ``ratio``, ``p10`` and ``p90`` are quantiles of the ratios within each round, in which both run
    right after each other; ``min_ratio`` is the ratio of the shortest times of all rounds, and
    ``cpu_ratio`` the median ratio of processor times (0 if unknown).
    """

    ours_ms: float
    peer_ms: float
    ratio: float
    p10: float
    p90: float
    min_ratio: float
    cpu_ratio: float
    rounds: int
    noisy: bool


def compare(ours: Sequence[Sample], peer: Sequence[Sample], *, threads: int) -> Comparison:
    """Compare two equally long, non-empty series whose samples i belong to the same round."""
    ratios = [p.wall / o.wall for o, p in zip(ours, peer, strict=True)]
    p10, ratio, p90 = np.percentile(ratios, (10, 50, 90)).tolist()
    cpu_ratio = 0.0
    if all(s.cpu > 0 for s in (*ours, *peer)):
        pairs = zip(ours, peer, strict=True)
        cpu_ratio = float(np.median([p.cpu / o.cpu for o, p in pairs]))
    # With several threads processor time exceeds wall time, never the other way round.
    waited = threads > 0 and max(wall_per_cpu(ours), wall_per_cpu(peer)) > MAX_WALL_PER_CPU
    return Comparison(
        ours_ms=1e3 * float(np.median([s.wall for s in ours])),
        peer_ms=1e3 * float(np.median([s.wall for s in peer])),
        ratio=ratio,
        p10=p10,
        p90=p90,
        min_ratio=min(s.wall for s in peer) / min(s.wall for s in ours),
        cpu_ratio=cpu_ratio,
        rounds=len(ratios),
        noisy=waited or p90 / p10 > MAX_SPREAD,
    )


def wall_per_cpu(samples: Sequence[Sample]) -> float:
    """Ratio of wall time to processor time of the calls; 0 if unknown."""
    cpu = sum(s.cpu for s in samples)
    return sum(s.wall for s in samples) / cpu if cpu > 0 else 0.0


def verdict(*, ratio: float, p90: float, noisy: bool, target: float | None) -> str:
    """One of "", "pass", "close", "fail" and "noisy".

    A miss within the spread of the rounds is "close"; a clear miss in a disturbed measurement is
    "noisy" and proves nothing.
    """
    if target is None:
        return ""
    if ratio >= target:
        return "pass"
    if noisy:
        return "noisy"
    return "fail" if p90 < target else "close"


def failures(row: dict) -> list[str]:
    """Why a row of the results misses its targets; a noisy time never counts as a miss."""
    case = f"{row['id']} {row['size']}"
    against = f" against {row['peer']}" if row["peer"] else ""
    threads = f", {row['threads']} threads" if row["threads"] > 1 else ""
    problems = []
    if row["error"]:
        problems.append(f"{case}{against}: {row['error']}")
    elif row["verdict"] == "fail":
        ratio = row["comparison"]["ratio"]
        missed = f"{ratio:.3g} times as fast, the target is {row['target']:g}"
        problems.append(f"{case}{against}{threads}: {missed}")
    limit = row["peak_limit_mb"]
    if limit is not None and row["peak_mb"] is not None and row["peak_mb"] > limit:
        problems.append(f"{case}: {row['peak_mb']:.1f} MiB at the peak, the limit is {limit:.4g}")
    for name, most in row["limits"].items():
        if row["metrics"].get(name, 0.0) > most:
            value = row["metrics"][name]
            problems.append(f"{case}{threads}: {name} is {value:.3g}, the limit is {most:g}")
    return problems
