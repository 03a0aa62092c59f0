"""Everything that needs a GPU in one command: ``python -m benchmarks.gpu_check``.

It builds the kernels for this GPU, runs their tests, whole detectors on the GPU against the CPU,
compute-sanitizer and the benchmarks, the most valuable first. Every stage has a time limit, and
none stops those after it. Logs, results and ``summary.txt`` arise in the output folder, so a run
that is cut short leaves what it had. Exits with 1 if a stage failed, and with 2 without a GPU.

For a machine without network, ``--prepare FOLDER`` on another machine puts what may be missing into
a folder, and ``--prepared FOLDER`` uses it. ``--device cpu`` rehearses without a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

from resobj_d2.command import CommandParser

from .gpu.sanitize import TOOLS, find_sanitizer
from .gpu.stages import Run, Stage
from .machine import REPOSITORY, slug

PAGE = "docs/benchmarks.md"
BENCHMARKS_RESERVE = 40  # seconds around the benchmarks: to start, to end, and for the tables
CASE_SECONDS = 70
SHOWN_FAILURES = 20  # of the tests, in the summary; the log has all
STAGES = ("packages", "build", "doctor", "tests", "detectors", *TOOLS, "benchmarks", "tables")


def find_gpu() -> tuple[str, str]:
    """Compute capability of the first GPU, for example "9.0", or "" and why there is none."""
    import torch

    if torch.version.cuda is None:
        return "", f"torch {torch.__version__} is built without CUDA; install a CUDA build"
    if not torch.cuda.is_available():
        return "", "torch sees no NVIDIA GPU on this machine (try nvidia-smi)"
    return "{}.{}".format(*torch.cuda.get_device_capability(0)), ""


def describe() -> list[str]:
    """What this machine is."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    python = sys.version.split()[0]
    return [
        f"{gpu}; torch {torch.__version__}, CUDA {torch.version.cuda}; Python {python}",
        f"nvcc: {shutil.which('nvcc') or 'not found'}; {os.cpu_count()} cores; "
        f"compute-sanitizer: {find_sanitizer() or 'not found'}",
    ]


def pytest_report(text: str) -> list[str]:
    """The line with the counts, and the names of what failed."""
    lines = text.splitlines()
    counts = [x for x in lines if re.search(r"\d+ (passed|failed|skipped|error)|no tests ran", x)]
    return counts[-1:] + [x for x in lines if x.startswith(("FAILED ", "ERROR "))][:SHOWN_FAILURES]


def benchmarks_report(text: str) -> list[str]:
    """Every row and what was missed."""
    prefixes = ("missed:", "out of time", "error:", "Traceback")
    lines = text.splitlines()
    return [x for x in lines if x.startswith(prefixes)] + [
        x for x in lines if " | " in x and not x.startswith(("|", "missed:"))
    ]


def build_report(text: str) -> list[str]:
    """The compiler's first errors."""
    return [x for x in text.splitlines() if re.search(r"(^|\W)(error|fatal)", x, re.I)][:5]


def doctor_report(text: str) -> list[str]:
    return [x for x in text.splitlines() if re.match(r"(cpu|cuda) kernels|gpu|detectron2|- ", x)]


class Check:
    """The stages of a run on one device.

    Args:
        device: "cuda", or "cpu" for a rehearsal.
        capability: of the GPU.
        site: folder into which missing packages are installed.
    """

    def __init__(self, run: Run, *, device: str, capability: str, site: Path) -> None:
        self.run, self.device, self.capability, self.site = run, device, capability, site
        self.on_gpu = device == "cuda"
        path = [str(REPOSITORY), str(site), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        self.environment = {
            "PYTHONPATH": os.pathsep.join(part for part in path if part),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",  # timm must not wait for a network
        }
        # Otherwise torch's own operations would be tested, checked and measured.
        self.native = {"RESOBJ_REQUIRE_NATIVE": "cpu,cuda" if self.on_gpu else "cpu"}

    def stage(self, name: str, seconds: float, *arguments: str, **options) -> Stage:
        environment = self.environment | options.pop("environment", self.native)
        command = [sys.executable, *arguments]
        return Stage(
            name=name, command=command, seconds=seconds, environment=environment, **options
        )

    def packages(self, wheels: list[Path]) -> Stage:
        options = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade"]
        target = ["--target", str(self.site), *map(str, wheels)]
        return self.stage("packages", 60, "-m", "pip", "-q", "install", *options, *target)

    def build(self) -> Stage:
        switches = {"FORCE_CUDA": "1"} if self.on_gpu else {}
        if self.on_gpu and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
            switches["TORCH_CUDA_ARCH_LIST"] = self.capability
        command = ("setup.py", "build_ext", "--inplace")
        return self.stage("build", 180, *command, environment=switches, report=build_report)

    def doctor(self) -> Stage:
        return self.stage("doctor", 60, "-m", "resobj_d2.doctor", report=doctor_report)

    def pytest(self, name: str, seconds: float, workers: int, *arguments: str) -> Stage:
        options = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
        if importlib.util.find_spec("xdist") or list(self.site.glob("xdist")):
            options += ["-n", str(min(workers, os.cpu_count() or 1)), "--dist", "worksteal"]
        command = ("-m", "pytest", *options, *arguments)
        return self.stage(name, seconds, *command, report=pytest_report)

    def tests(self) -> Stage:
        selected = ["-m", "cuda"] if self.on_gpu else ["-m", "not slow", "-k", "native-cpu"]
        return self.pytest("tests", 120, 8, "tests/ops", *selected)

    def detectors(self) -> Stage:
        selected = ["-m", "cuda" if self.on_gpu else "not cuda"]
        return self.pytest("detectors", 120, 6, "tests/modeling/test_devices.py", *selected)

    def sanitizer(self, tool: str, seconds: float) -> Stage:
        def report(text: str) -> list[str]:
            lines = text.splitlines()
            files = [x for x in lines if x.startswith(f"{tool} ")]
            bad = [x for x in files if ": clean" not in x]
            errors = [x for x in lines if x.startswith(("error:", "Traceback"))]
            return [f"{len(files) - len(bad)} of {len(files)} files clean", *bad, *errors]

        limit = ["--seconds", str(seconds - 5)]
        return self.stage(
            tool, seconds, "-m", "benchmarks.gpu.sanitize", tool, *limit, report=report
        )

    def benchmarks(self, budget: float) -> Stage:
        left = max(1.0, self.run.left() - BENCHMARKS_RESERVE)
        command = ["-m", "benchmarks", "--device", self.device, "--budget", str(budget)]
        command += ["--seconds", f"{left:.0f}", "--case-seconds", str(CASE_SECONDS), "--check"]
        command += ["--json", str(self.run.output / "results.json")]
        if not self.on_gpu:
            command += ["--quick", "--only", "G"]
        return self.stage("benchmarks", left + 25, *command, report=benchmarks_report)

    def tables(self) -> Stage:
        return self.stage("tables", 60, "-m", "benchmarks.table", "--write", PAGE)


def missing_wheels(folder: Path) -> list[Path]:
    """The wheels in ``folder`` of packages that this Python does not have."""

    def is_here(name: str) -> bool:
        if name.startswith("detectron2"):  # under either name
            return importlib.util.find_spec("detectron2") is not None
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            return False
        return True

    wheels = sorted(folder.glob("*.whl"))
    return [path for path in wheels if not is_here(path.name.partition("-")[0])]


def use_carried_library(run: Run, folder: Path) -> None:
    """Copy the prepared kernels where the build made none."""
    for library in sorted(folder.glob("*.so")):
        target = REPOSITORY / "resobj_d2" / "ops" / library.name
        if not target.exists():
            shutil.copy(library, target)
            run.say(f"   using the prepared {library.name}")


def publish(results: Path) -> None:
    """Put the measurements where the tables are made from."""
    name = slug(json.loads(results.read_text())["machine"])
    shutil.copy(results, REPOSITORY / "benchmarks" / "results" / f"{name}.json")


def run_stages(check: Check, wanted: list[str], prepared: Path | None, budget: float) -> None:
    run = check.run
    for line in describe():
        run.say(line)
    if "packages" in wanted and prepared and (wheels := missing_wheels(prepared / "wheels")):
        run.run(check.packages(wheels))
    if "build" in wanted and not run.run(check.build()) and prepared:
        use_carried_library(run, prepared / "lib")
    for name in ("doctor", "tests"):
        if name in wanted:
            run.run(getattr(check, name)())
    # Correctness alone, so what else the machine does is no matter.
    beside = {"detectors": check.detectors, "memcheck": lambda: check.sanitizer("memcheck", 110)}
    run.run_together([make() for name, make in beside.items() if name in wanted])
    if "racecheck" in wanted:
        run.run(check.sanitizer("racecheck", 80))
    if "benchmarks" in wanted:
        run.run(check.benchmarks(budget))
    results = run.output / "results.json"
    if "tables" in wanted and check.on_gpu and results.is_file():
        publish(results)
        run.run(check.tables())


def parse(argv: list[str]) -> argparse.Namespace:
    parser = CommandParser(
        prog="python -m benchmarks.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=REPOSITORY / "output" / "gpu-check")
    parser.add_argument("--limit", type=float, default=540, help="seconds in all, default 540")
    parser.add_argument("--budget", type=float, default=0.3, help="seconds per case, default 0.3")
    parser.add_argument("--stages", default=",".join(STAGES), help="only these, default all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--prepared", type=Path, metavar="FOLDER", help="made by --prepare")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="make that folder and stop")
    here = "{}.{}".format(*sys.version_info)
    parser.add_argument("--python", default=here, help=f"for --prepare, default {here}")
    parser.add_argument("--arch", default="9.0", help="the GPU's, for --prepare, default 9.0")
    options = parser.parse_args(argv)
    options.stages = [name.strip() for name in options.stages.split(",") if name.strip()]
    if unknown := [name for name in options.stages if name not in STAGES]:
        parser.error(f"--stages: unknown {', '.join(unknown)}; known are {', '.join(STAGES)}")
    if not re.fullmatch(r"3\.\d+", options.python):
        parser.error(f"--python takes a version such as 3.12, got {options.python!r}")
    if not 0 < options.limit < float("inf"):
        parser.error(f"--limit must be positive, got {options.limit}")
    if options.prepared and not (options.prepared / "wheels").is_dir():
        parser.error(f"--prepared: {options.prepared} has no folder wheels; --prepare makes it")
    return options


def main(argv: list[str]) -> int:
    options = parse(argv)
    if options.prepare:
        from .gpu.prepare import PrepareError, prepare

        try:
            prepare(options.prepare.resolve(), python=options.python, arch=options.arch)
        except (PrepareError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return 0
    capability = ""
    if options.device == "cuda":
        capability, problem = find_gpu()
        if problem:
            print(f"error: gpu-check needs a GPU: {problem}", file=sys.stderr)
            return 2
    run = Run(options.output.resolve(), options.limit)
    site = REPOSITORY / "build" / "gpu-check-site"
    check = Check(run, device=options.device, capability=capability, site=site)
    prepared = options.prepared.resolve() if options.prepared else None
    run_stages(check, options.stages, prepared, options.budget)
    end = f"failed: {', '.join(run.failed)}" if run.failed else "passed"
    run.say(f"gpu-check {end}; logs in {run.output}")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
