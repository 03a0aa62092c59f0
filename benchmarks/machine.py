"""The machine that the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("torchvision", "fvcore", "detectron2", "detectron2-cdo", "torch-fast-box-ops", "numpy")
REPOSITORY = Path(__file__).resolve().parents[1]
# As in csrc/cpu/instruction_sets.h: the first one whose flags the processor has.
INSTRUCTION_SETS = {
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx2": {"avx2"},
}


def describe(device: str) -> dict:
    """Processor, GPU, versions, kernels and the state of the repository, for the JSON.

    ``instructions`` are those that the kernels use; ``title`` names them unless they are the best
    of all, since processors of one name differ and ``ATEN_CPU_CAPABILITY`` can limit them.
    """
    from resobj_d2 import ops

    cpu, flags = processor()
    best = instruction_set(flags)
    used = used_instructions() or best
    result = {
        "device": device,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "title": title(cpu, best, used),
        "instructions": used,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "kernels": ops.native_status(),
        "git": git_revision(),
        "platform": platform.platform(),
        **package_versions(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        result["gpu"] = properties.name
        result["gpu_memory_mb"] = properties.total_memory // 2**20
        result["gpu_capability"] = f"{properties.major}.{properties.minor}"
        result["cuda"] = torch.version.cuda
    return result


def title(cpu: str, best: str, used: str) -> str:
    if used != best:
        return f"{cpu}, {used} only"
    return cpu if best == next(iter(INSTRUCTION_SETS)) else f"{cpu}, {best}"


def slug(machine: dict) -> str:
    """File name for the results of this processor or GPU."""
    name = machine["gpu"] if machine["device"] == "cuda" else machine["title"]
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def used_instructions() -> str | None:
    """Vector instructions of the CPU kernels, a key of INSTRUCTION_SETS or "baseline"."""
    from resobj_d2.ops._native import cpu_capability

    used = cpu_capability()
    return "baseline" if used == "default" else used


def processor() -> tuple[str, set[str]]:
    """Name and feature flags of the processor."""
    name, flags = platform.machine(), set()
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
                break
    return name, flags


def instruction_set(flags: set[str]) -> str:
    for name, needed in INSTRUCTION_SETS.items():
        if needed <= flags:
            return name
    return "baseline"


def package_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_revision() -> str:
    """The commit, with "-dirty" if tracked files differ from it; "unknown" without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return result.stdout.strip() or "unknown"


def usable_threads(wanted: list[int]) -> list[int]:
    """Those for which the machine has enough cores; prints which are skipped."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for threads in wanted:
        if threads > cores:
            print(f"skipped: {threads} threads, but there are only {cores} cores", file=sys.stderr)
    return [threads for threads in wanted if threads <= cores]
