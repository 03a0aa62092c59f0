"""``python -m benchmarks``: every operator against its peers, side by side."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from resobj_d2.command import CommandParser
from resobj_d2.process import replacing

from . import machine, memory, processes, table
from .case import Case, all_cases, most_valuable_first, select_cases
from .comparison import failures
from .worker import BANDWIDTH, LAUNCHES, OURS, Job, Row

# Of the time for a GPU, the share that is kept for counting launches.
LAUNCHES_SHARE = 0.15


def parse(argv: list[str], prog: str = "python -m benchmarks") -> argparse.Namespace:
    description = "Every operator against its peers, side by side."
    parser = CommandParser(prog=prog, description=description)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", default="1,2", metavar="N", help="CPU threads, default 1,2")
    parser.add_argument(
        "--only", default="", metavar="NAME", help='ids or whole names: R1,"M1 201600 x 50"'
    )
    parser.add_argument(
        "--budget", type=float, metavar="X", help="seconds per case and thread count, default 5"
    )
    parser.add_argument("--malloc", choices=tuple(memory.MALLOC), help="default: set by each case")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="PATH",
        help="a file, or a folder for <processor>.json; kept after every case",
    )
    parser.add_argument("--seconds", type=float, metavar="X", help="begin no case after this time")
    parser.add_argument(
        "--case-seconds",
        type=float,
        default=900,
        metavar="X",
        help="give up a case after this, default 900",
    )
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    parser.add_argument("--quick", action="store_true", help="1 thread, half a second per case")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="for the inputs and the random order"
    )
    options = parser.parse_args(argv)
    if options.budget is None:
        options.budget = 0.5 if options.quick else 5.0
    try:
        threads = [int(t) for t in ("1" if options.quick else options.threads).split(",")]
    except ValueError:
        parser.error(f"--threads takes comma-separated numbers, got {options.threads!r}")
    if min(threads) < 1:
        parser.error(f"--threads must be positive, got {options.threads!r}")
    for name in ("seconds", "case_seconds"):
        if (value := getattr(options, name)) is not None and not 0 < value < float("inf"):
            parser.error(f"--{name.replace('_', '-')} must be positive, got {value}")
    options.threads = [1] if options.device == "cuda" else machine.usable_threads(threads)
    options.only = [name.strip() for name in options.only.split(",") if name.strip()]
    return options


def main(argv: list[str], prog: str = "python -m benchmarks") -> int:
    options = parse(argv, prog)
    try:
        cases = select_cases(
            all_cases(), only=options.only, device=options.device, quick=options.quick
        )
    except ValueError as error:
        print(f"error: --only: {error}", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(case.key for case in cases))
        return 0
    problem = why_not(options.device)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    results = run(cases, options)
    print()
    print(table.render([results]))
    if options.json:
        print(f"wrote {write(results, options.json)}")
    missed = list(dict.fromkeys(line for row in results["rows"] for line in failures(row)))
    for line in missed:
        print(f"missed: {line}")
    # A wrong result always fails, a slow one only with --check.
    return 1 if any(row["error"] for row in results["rows"]) or (options.check and missed) else 0


def why_not(device: str) -> str:
    """Why nothing can be measured on this machine; "" if it can."""
    from resobj_d2 import ops

    if device == "cuda" and not torch.cuda.is_available():
        why = "this torch has no CUDA" if torch.version.cuda is None else "torch sees no GPU"
        return f"--device cuda: {why}, so nothing can be measured there"
    status = ops.native_status()[device]
    if status != "native":
        return f"the {device} kernels are not in use ({status}); see resobj-d2 doctor"
    return ""


class Results:
    """What is measured, in the form of the JSON file, which is written after every case."""

    def __init__(self, cases: list[Case], options: argparse.Namespace) -> None:
        self.cases = {case.key: case for case in cases}
        self.options, self.start = options, time.time()
        self.rates: dict[str, dict[str, float]] = {}
        self.rows: dict[tuple[str, str], list[dict]] = {}  # by key and allocator
        self.machine = machine.describe(options.device)

    def add(self, key: str, malloc: str, rows: list[dict]) -> None:
        self.rows[key, malloc] = rows
        for row in rows:
            print(table.one_line(row), flush=True)
        self.save()

    def add_launches(self, key: str, malloc: str, launches: dict[str, int]) -> None:
        for row in self.rows[key, malloc]:
            if OURS in launches and not row["missing"]:
                row["cuda"]["launches"] = launches[OURS]
            if row["peer"] in launches:
                row["cuda"]["peer_launches"] = launches[row["peer"]]
        self.save()

    def has_times(self, key: str, malloc: str) -> bool:
        return any(row["ours_ms"] for row in self.rows.get((key, malloc), []))

    def save(self) -> Path | None:
        return write(self.content(), self.options.json) if self.options.json else None

    def content(self) -> dict:
        settings = {name: getattr(self.options, name) for name in ("budget", "seed", "quick")}
        settings |= {"threads": self.options.threads, "seconds": round(time.time() - self.start)}
        places = {key: place for place, key in enumerate(self.cases)}
        rows = [self.rows[pair] for pair in sorted(self.rows, key=lambda pair: places[pair[0]])]
        return {
            "machine": self.machine,
            "settings": settings,
            "bandwidth": self.rates,
            "rows": [row for group in rows for row in group],
        }


def run(cases: list[Case], options: argparse.Namespace) -> dict:
    """Run every group of cases in its own process and collect the results."""
    results = Results(cases, options)
    job = Job([], options.device, options.threads, "warm", options.budget, options.seed, {})
    job.case_seconds = options.case_seconds
    until = results.start + options.seconds if options.seconds else None
    results.rates = job.rates = measure_bandwidth(job)
    on_gpu = options.device == "cuda"
    job.until = until if until is None or not on_gpu else until - LAUNCHES_SHARE * options.seconds
    unmeasured = []
    for malloc, group in groups(cases, options.malloc, options.device):
        job.keys, job.malloc = [case.key for case in group], malloc
        # With the default allocator calls wait for the system, whatever the number of threads.
        job.threads = options.threads[:1] if malloc == "default" else options.threads
        unmeasured += run_group(job, results)
    if unmeasured:
        print(f"out of time, not measured: {', '.join(unmeasured)}", flush=True)
    if on_gpu:
        job.keys = [key for key in job.keys if results.has_times(key, job.malloc)]
        job.task, job.until = LAUNCHES, until
        run_group(job, results)
    return results.content()


def run_group(job: Job, results: Results) -> list[str]:
    """Do a job; returns the keys for which no time was left."""

    def keep(result: dict) -> None:
        if "launches" in result:
            results.add_launches(result["key"], job.malloc, result["launches"])
        else:
            results.add(result["key"], job.malloc, result["rows"])

    def fail(key: str, problem: str) -> None:
        if job.task == LAUNCHES:
            print(f"launches of {key} were not counted: {problem}", file=sys.stderr)
        else:
            row = failed_row(results.cases[key], job.malloc, problem)
            results.add(key, job.malloc, [row])

    return processes.run_job(job, keep, fail)


def measure_bandwidth(job: Job) -> dict[str, dict[str, float]]:
    found: list[dict] = []
    _, problem = processes.ask_worker(replace(job, task=BANDWIDTH), found.append)
    if not found:
        raise SystemExit(f"error: memory bandwidth cannot be measured:\n{problem}")
    return found[0]["rates"]


def groups(
    cases: list[Case], malloc: str | None, device: str = "cpu"
) -> list[tuple[str, list[Case]]]:
    """Cases that share a process, with its allocator settings.

    All do on a GPU, which they do not concern, the most valuable first.
    """
    if device == "cuda":
        return [(malloc or "warm", most_valuable_first(cases))] if cases else []
    result: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        for mode in (malloc,) if malloc else case.malloc:
            result.setdefault((case.process or case.key, mode), []).append(case)
    return [(mode, group) for (_, mode), group in result.items()]


def failed_row(case: Case, malloc: str, problem: str) -> dict:
    return asdict(Row(case.id, case.size, "", 1, malloc, verdict="fail", error=problem))


def write(results: dict, path: Path) -> Path:
    """Write the JSON to the file ``path``, or into the folder if it does not end in .json."""
    if path.suffix != ".json":
        path = path / f"{machine.slug(results['machine'])}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(json.dumps(results, indent=1) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
