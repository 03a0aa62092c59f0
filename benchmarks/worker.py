"""Measures cases in a separate process: ``python -m benchmarks.worker job.json result.json``.

A fresh process has a fresh allocator, which is configured by its environment.
"""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import cuda, memory, roofline
from .case import MIB, Case, all_cases
from .comparison import Comparison, compare, verdict
from .timing import CpuClock, interleave

OURS = "ours"


@dataclass
class Row:
    """One line of the results: our operator against one peer, at one number of threads."""

    id: str
    size: str
    peer: str  # empty if there is nothing to compare with
    threads: int
    malloc: str
    ours_ms: float | None = None
    peer_ms: float | None = None
    comparison: dict | None = None
    target: float | None = None
    verdict: str = ""
    peak_mb: float | None = None
    peer_peak_mb: float | None = None
    peak_limit_mb: float | None = None
    roofline: float | None = None
    operators: int | None = None
    peer_operators: int | None = None
    cuda: dict = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    missing: str = ""  # why the peer was not measured
    error: str = ""  # why the case failed


@dataclass
class Job:
    """A worker's task."""

    keys: list[str]
    device: str
    threads: list[int]
    malloc: str
    budget: float
    seed: int
    rates: dict[str, dict[str, float]]  # roofline.bandwidth by number of threads


class CountOperators(TorchDispatchMode):
    """Counts the operators that reach a backend; on a GPU each launches at least one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def count_operators(call: Callable[[], Any]) -> int | None:
    """Number of operators in a call; None for torch.compile's code, which cannot be observed."""
    try:
        with CountOperators() as mode:
            call()
    except RuntimeError:
        return None
    return mode.count


def run_case(case: Case, job: Job) -> list[Row]:
    """Verify, then measure at each number of threads. A wrong result is never timed."""
    device = torch.device(job.device)
    threads = [t for t in job.threads if t <= case.max_threads]
    torch.set_num_threads(threads[0])
    inputs = case.make(device, job.seed)
    calls, missing = bind(case, inputs)
    errors = check_results(case, calls)
    if errors:
        return [
            Row(case.id, case.size, peer, threads[0], job.malloc, error=error, verdict="fail")
            for peer, error in errors.items()
        ]
    facts = measure_once(calls, device)
    rows = []
    for count in threads:
        torch.set_num_threads(count)
        rows += measure(case, job, calls, facts, count)
    if not case.process:  # last, as it changes how this process allocates
        torch.set_num_threads(threads[0])
        add_peaks(rows, calls, device)
    for peer, reason in missing.items():
        rows.append(Row(case.id, case.size, peer, threads[0], job.malloc, missing=reason))
    return rows


def bind(case: Case, inputs: tuple) -> tuple[dict[str, Callable], dict[str, str]]:
    """Our call and those of installed peers, and why the others are missing."""
    calls = {OURS: case.ours(*inputs)}
    missing = {}
    for name, peer in case.peers.items():
        try:
            calls[name] = peer(*inputs)
        except ImportError as error:
            missing[name] = f"not installed ({error})"
    return calls, missing


def check_results(case: Case, calls: dict[str, Callable]) -> dict[str, str]:
    """What is wrong with the result, by peer."""
    result = calls[OURS]()
    errors = {}
    for name, call in calls.items():
        if name == OURS:
            continue
        try:
            case.verify(result, call())
        except AssertionError as error:
            errors[name] = f"our result differs from that of {name}: {error}"
    return errors


def measure_once(calls: dict[str, Callable], device: torch.device) -> dict[str, dict]:
    """What need not be repeated: number of operators and, on a GPU, of launches and waits."""
    facts = {}
    for name, call in calls.items():
        fact: dict[str, Any] = {"operators": count_operators(call)}
        if device.type == "cuda":
            fact["cuda"] = {"launches": cuda.count_launches(call), "waits": cuda.count_waits(call)}
        facts[name] = fact
    return facts


def add_peaks(rows: list[Row], calls: dict[str, Callable], device: torch.device) -> None:
    """Peak memory in MiB, rounded up to a tenth."""
    peaks = {}
    for name, call in calls.items():
        peak = memory.peak_bytes(call, device)
        peaks[name] = None if peak is None else math.ceil(10 * peak / MIB) / 10
    for row in rows:
        row.peak_mb, row.peer_peak_mb = peaks[OURS], peaks.get(row.peer)


def measure(
    case: Case, job: Job, calls: dict[str, Callable], facts: dict[str, dict], threads: int
) -> list[Row]:
    comparisons, ours_ms = measure_ratios(case, job, calls, threads)
    on_gpu = measure_on_gpu(case, job, calls, facts) if job.device == "cuda" else {}
    metrics: dict[str, float] = {}
    if case.metrics:
        results = {name: call() for name, call in calls.items()}
        metrics = case.metrics(results.pop(OURS), results)
    rates = job.rates.get(str(threads))
    rows = []
    for peer in [name for name in calls if name != OURS] or [""]:
        row = Row(case.id, case.size, peer, threads, job.malloc, ours_ms=ours_ms)
        row.peak_limit_mb, row.limits, row.metrics = case.peak_mb, case.limits, metrics
        row.operators = facts[OURS]["operators"]
        row.cuda = {**facts[OURS].get("cuda", {}), **on_gpu.get(OURS, {})}
        if peer:
            add_comparison(row, comparisons[peer], case, job.device)
            row.peer_operators = facts[peer]["operators"]
            of_peer = {**facts[peer].get("cuda", {}), **on_gpu.get(peer, {})}
            row.cuda |= {f"peer_{key}": value for key, value in of_peer.items()}
        if rates:
            row.roofline = roofline.share(case.reads, case.writes, row.ours_ms * 1e-3, rates)
        rows.append(row)
    return rows


def add_comparison(row: Row, comparison: Comparison, case: Case, device: str) -> None:
    row.comparison = asdict(comparison)
    row.ours_ms, row.peer_ms = comparison.ours_ms, comparison.peer_ms
    if row.peer in case.targets:
        row.target = case.targets[row.peer].at(device, row.threads)
    row.verdict = verdict(
        ratio=comparison.ratio, p90=comparison.p90, noisy=comparison.noisy, target=row.target
    )


def measure_ratios(
    case: Case, job: Job, calls: dict[str, Callable], threads: int
) -> tuple[dict[str, Comparison], float]:
    """Each peer's comparison and our median time; a disturbed measurement is repeated once."""
    clock = cuda.CudaClock() if job.device == "cuda" else CpuClock()
    best: dict[str, Comparison] = {}
    ours_ms = float("inf")
    for attempt in range(2):
        samples = interleave(
            calls, clock, budget=job.budget, min_rounds=case.min_rounds, seed=job.seed + attempt
        )
        ours = samples.pop(OURS)
        alone = compare(ours, ours, threads=threads)
        ours_ms = min(ours_ms, alone.ours_ms)
        for name, of_peer in samples.items():
            comparison = compare(ours, of_peer, threads=threads)
            if name not in best or disturbance(comparison) < disturbance(best[name]):
                best[name] = comparison
        if not any(comparison.noisy for comparison in best.values()):
            break
    return best, ours_ms


def disturbance(comparison: Comparison) -> tuple[bool, float]:
    return comparison.noisy, comparison.p90 / comparison.p10


def measure_on_gpu(
    case: Case, job: Job, calls: dict[str, Callable], facts: dict[str, dict]
) -> dict[str, dict]:
    """Milliseconds with a cold L2 cache, and as a CUDA graph if possible."""
    options = {"budget": job.budget / 2, "min_rounds": case.min_rounds, "seed": job.seed}
    timings: dict[str, dict] = {name: {} for name in calls}
    for name, samples in interleave(calls, cuda.FlushedClock(), **options).items():
        timings[name]["cold_ms"] = compare(samples, samples, threads=0).ours_ms
    graphs = {}
    for name, call in calls.items():
        # A failed capture can upset what comes after it, so none is tried in vain.
        waits = facts[name]["cuda"]["waits"]
        replay, reason = (None, f"waits {waits} times") if waits else cuda.capture(call)
        if replay is None:
            timings[name]["no_graph"] = reason
        else:
            graphs[name] = replay
    if graphs:
        for name, samples in interleave(graphs, cuda.CudaClock(), **options).items():
            timings[name]["graph_ms"] = compare(samples, samples, threads=0).ours_ms
    return timings


def failed(case: Case, malloc: str, error: Exception) -> Row:
    """The row of a case that raised; the full traceback goes to stderr."""
    traceback.print_exception(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    message = str(error).partition("\n")[0]
    text = f"{type(error).__name__}: {message} ({Path(where.filename).name}, line {where.lineno})"
    return Row(case.id, case.size, "", 1, malloc, error=text, verdict="fail")


def main(job_file: str, result_file: str) -> None:
    job = Job(**json.loads(Path(job_file).read_text()))
    if not job.keys:  # measure memory bandwidth
        rates = {}
        for count in job.threads:
            torch.set_num_threads(count)
            rates[str(count)] = roofline.bandwidth(torch.device(job.device))
        Path(result_file).write_text(json.dumps(rates))
        return
    cases = {case.key: case for case in all_cases()}
    rows = []
    for key in job.keys:
        case = cases[key]
        try:
            rows += run_case(case, job)
        except Exception as error:  # the other cases of this process can still be measured
            rows.append(failed(case, job.malloc, error))
    Path(result_file).write_text(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main(*sys.argv[1:])
