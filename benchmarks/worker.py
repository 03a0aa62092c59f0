"""Measures cases in a separate process: ``python -m benchmarks.worker job.json results.jsonl``.

A fresh process has a fresh allocator, which is configured by its environment. Each result is a line
of the file as soon as it is known, so those of a process that is killed are kept.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import cuda, machine, memory, roofline
from .case import MIB, Case, all_cases
from .comparison import Comparison, compare, verdict
from .timing import CpuClock, interleave

OURS = "ours"
# The tasks of a job.
BANDWIDTH, MEASURE, LAUNCHES = "bandwidth", "measure", "launches"
CONTEXT_LOST = 3  # exit status: after an error on the GPU a process can no longer use it
LEAST_SECONDS = 8  # with less time left no further case is begun
OWN_PACKAGES = ("benchmarks", "resobj_d2")


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
    """A worker's task.

    Attributes:
        rates: ``roofline.bandwidth`` by number of threads.
        task: ``"bandwidth"``, ``"measure"``, or ``"launches"``, which only counts them: a profiler
            slows down every launch after it, so they are counted when all times are known.
        case_seconds: a case that takes longer ends the process.
        until: point in ``time.time()`` at which the process ends, in the middle of a case if need
            be; None for no limit.
    """

    keys: list[str]
    device: str
    threads: list[int]
    malloc: str
    budget: float
    seed: int
    rates: dict[str, dict[str, float]]
    task: str = MEASURE
    case_seconds: float = 900
    until: float | None = None


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
    try:
        calls, missing = bind(case, case.make(device, job.seed))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OWN_PACKAGES:
            raise
        reason = not_installed(error)
        return [
            Row(case.id, case.size, peer, threads[0], job.malloc, missing=reason)
            for peer in case.peers or [""]
        ]
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
    # Last, as it changes how this process allocates on the CPU.
    if job.device == "cuda" or not case.process:
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
            missing[name] = not_installed(error)
    return calls, missing


def not_installed(error: ImportError) -> str:
    return f"not installed ({error})"


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
    """What need not be repeated: number of operators and, on a GPU, of waits."""
    facts = {}
    for name, call in calls.items():
        fact: dict[str, Any] = {"operators": count_operators(call)}
        if device.type == "cuda":
            fact["cuda"] = {"waits": cuda.count_waits(call)}
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
        target = case.targets[row.peer]
        # With default malloc page faults take most of the time, and as long on any processor.
        faults = row.malloc == "default" and "default" in case.malloc
        instructions = "avx2" if faults else machine.used_instructions()
        row.target = target.at(device, row.threads, instructions)
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


def count_launches(case: Case, job: Job) -> dict[str, int]:
    """Number of launches of our call and of each peer's."""
    calls, _ = bind(case, case.make(torch.device(job.device), job.seed))
    counts = {}
    for name, call in calls.items():
        call()
        counts[name] = cuda.count_launches(call)
    return counts


def context_is_lost(device: str) -> bool:
    """Whether every later call on the GPU would fail, as after an access out of bounds."""
    if device != "cuda":
        return False
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


def run_task(case: Case, job: Job) -> dict[str, Any]:
    """The result of a case: its rows, or the launches that were counted."""
    try:
        if job.task == LAUNCHES:
            return {"launches": count_launches(case, job)}
        return {"rows": [asdict(row) for row in run_case(case, job)]}
    except Exception as error:  # the other cases of this process can still be measured
        if job.task == LAUNCHES:
            traceback.print_exception(error)
            return {"launches": {}}
        return {"rows": [asdict(failed(case, job.malloc, error))]}


def seconds_left(job: Job) -> float:
    return math.inf if job.until is None else job.until - time.time()


def work(job: Job, keep: Callable[[dict[str, Any]], None]) -> int:
    """Do the job, handing over every result at once; returns the exit status."""
    if job.task == BANDWIDTH:
        rates = {}
        for count in job.threads:
            torch.set_num_threads(count)
            rates[str(count)] = roofline.bandwidth(torch.device(job.device))
        keep({"key": BANDWIDTH, "rates": rates})
        return 0
    cases = {case.key: case for case in all_cases()}
    for key in job.keys:
        left = seconds_left(job)
        if left < LEAST_SECONDS:
            break
        # Works even if the process hangs in a call into the driver; the stack goes to stderr.
        faulthandler.dump_traceback_later(min(job.case_seconds, left), exit=True)
        result = run_task(cases[key], job)
        faulthandler.cancel_dump_traceback_later()
        keep({"key": key, **result})
        if context_is_lost(job.device):
            return CONTEXT_LOST
        gc.collect()
        if job.device == "cuda":
            torch.cuda.empty_cache()
    return 0


def main(job_file: str, result_file: str) -> int:
    job = Job(**json.loads(Path(job_file).read_text()))
    with open(result_file, "a") as results:

        def keep(result: dict[str, Any]) -> None:
            results.write(json.dumps(result) + "\n")
            results.flush()

        return work(job, keep)


if __name__ == "__main__":
    status = main(*sys.argv[1:])
    sys.stderr.flush()
    if status == CONTEXT_LOST:
        os._exit(status)  # the ordinary exit, which uses the GPU once more, can hang
    sys.exit(status)
