"""``python -m benchmarks``: every operator against its peers, side by side."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from . import machine, memory, table
from .case import Case, all_cases, select_cases
from .comparison import failures
from .worker import Job, Row

# Time limit of a process, so that a case that hangs does not stop the others.
TIMEOUT = 900


def parse(argv: list[str], prog: str = "python -m benchmarks") -> argparse.Namespace:
    description = "Every operator against its peers, side by side."
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", default="1,2", help="CPU threads, default 1,2")
    parser.add_argument("--only", default="", help='ids or whole names: R1,"M1 201600 x 50"')
    parser.add_argument("--budget", type=float, help="seconds per case and thread count, default 5")
    parser.add_argument("--malloc", choices=tuple(memory.MALLOC), help="default: set by each case")
    parser.add_argument("--json", type=Path, help="a file, or a folder for <processor>.json")
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    parser.add_argument("--quick", action="store_true", help="1 thread, half a second per case")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument("--seed", type=int, default=0, help="for the inputs and the random order")
    options = parser.parse_args(argv)
    if options.budget is None:
        options.budget = 0.5 if options.quick else 5.0
    try:
        threads = [int(t) for t in ("1" if options.quick else options.threads).split(",")]
    except ValueError:
        parser.error(f"--threads takes comma-separated numbers, got {options.threads!r}")
    if min(threads) < 1:
        parser.error(f"--threads must be positive, got {options.threads!r}")
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


def run(cases: list[Case], options: argparse.Namespace) -> dict:
    """Run every group of cases in its own process and collect the results."""
    start = time.time()
    job = Job([], options.device, options.threads, "warm", options.budget, options.seed, {})
    job.rates, problem = ask_worker(job)
    if problem:
        raise SystemExit(f"error: memory bandwidth cannot be measured:\n{problem}")
    rows: list[dict] = []
    for malloc, group in groups(cases, options.malloc):
        job.keys, job.malloc = [case.key for case in group], malloc
        # With the default allocator calls wait for the system, whatever the number of threads.
        job.threads = options.threads[:1] if malloc == "default" else options.threads
        measured, problem = ask_worker(job)
        if problem:
            measured = [failed_row(case, malloc, problem) for case in group]
        for row in measured:
            print(table.one_line(row), flush=True)
        rows += measured
    return {
        "machine": machine.describe(options.device),
        "settings": {
            "budget": options.budget,
            "seed": options.seed,
            "quick": options.quick,
            "threads": options.threads,
            "seconds": round(time.time() - start),
        },
        "bandwidth": job.rates,
        "rows": rows,
    }


def groups(cases: list[Case], malloc: str | None) -> list[tuple[str, list[Case]]]:
    """Cases that share a process, with its allocator settings."""
    result: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        for mode in (malloc,) if malloc else case.malloc:
            result.setdefault((case.process or case.key, mode), []).append(case)
    return [(mode, group) for (_, mode), group in result.items()]


def ask_worker(job: Job) -> tuple[list | dict, str]:
    """The worker's result, and what went wrong ("" if nothing did)."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment |= memory.MALLOC[job.malloc]
    environment["RESOBJ_REQUIRE_NATIVE"] = "cpu" if job.device == "cpu" else "cpu,cuda"
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder, "job.json"), Path(folder, "result.json")
        request.write_text(json.dumps(asdict(job)))
        command = [sys.executable, "-m", "benchmarks.worker", str(request), str(answer)]
        try:
            done = subprocess.run(
                command,
                env=environment,
                cwd=machine.REPOSITORY,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            return {}, f"no answer within {TIMEOUT} s"
        if done.returncode != 0 or not answer.is_file():
            return {}, f"exit status {done.returncode}: " + done.stderr.strip()[-2000:]
        return json.loads(answer.read_text()), ""


def failed_row(case: Case, malloc: str, problem: str) -> dict:
    return asdict(Row(case.id, case.size, "", 1, malloc, verdict="fail", error=problem))


def write(results: dict, path: Path) -> Path:
    """Write the JSON to the file ``path``, or into the folder if it does not end in .json."""
    if path.suffix != ".json":
        path.mkdir(parents=True, exist_ok=True)
        path = path / f"{machine.slug(results['machine'])}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
