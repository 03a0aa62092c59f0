"""What ``setup.py`` can build here, for which architectures, and why the rest is left out.

Imports only the standard library, and torch if it is installed.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

CPU = "resobj_d2.ops.libresobj_cpu"
CUDA = "resobj_d2.ops.libresobj_cuda"
BUILD_INFO = "resobj_d2._build_info"

# The oldest torch whose stable ABI the kernels use; they run on that version and all newer ones.
TARGET_TORCH = (2, 10)
# Never fuse into multiply-add: CPU, CUDA and the reference must agree on ties.
CXX_FLAGS = [
    "-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra",
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
]  # fmt: skip
# For unknown machines: one architecture per major version, which runs on all of that version, plus
# PTX of the last one for newer GPUs.
DEFAULT_ARCHS = ["7.5", "8.0", "9.0", "10.0", "12.0"]
TORCH_MISSING = "torch could not be imported while building"
NO_TORCH = (
    "error: resobj_d2 compiles its operators against your torch, which cannot be imported here "
    "({error}). With torch >= 2.10 installed: pip install --no-build-isolation . (pip's isolated "
    "builds cannot see it). Without native operators: RESOBJ_NO_EXT=1 pip install ."
)


@dataclass
class Plan:
    """What can be built here. ``skipped`` maps an extension to the reason it cannot be built."""

    cxx: list[str] = field(default_factory=list)
    nvcc: str = ""
    arch_flags: list[str] = field(default_factory=list)
    why_archs: str = ""
    skipped: dict[str, str] = field(default_factory=dict)
    info: dict[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, str]:
        """The contents of ``resobj_d2/_build.json``: how it was built and why parts are missing."""
        reasons = {
            f"{name}_not_built": self.skipped[library]
            for name, library in (("cpu", CPU), ("cuda", CUDA))
            if library in self.skipped
        }
        return {**self.info, **reasons}

    def lines(self) -> list[str]:
        """The plan as printed during the build."""
        lines = []
        if CPU not in self.skipped:
            lines.append(f"CPU kernels: compiled with {self.info['compiler']}")
        if CUDA not in self.skipped:
            lines.append(
                f"CUDA kernels: compiled with nvcc {self.info['cuda']} for "
                f"{self.info['cuda_archs']} ({self.why_archs})"
            )
        names = {CPU: "CPU kernels", CUDA: "CUDA kernels", BUILD_INFO: "_build_info"}
        lines += [f"{names[key]}: left out, {reason}" for key, reason in self.skipped.items()]
        return lines


def is_set(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


@functools.cache
def make_plan() -> Plan:
    """Inspect compilers, torch and the environment.

    Raises:
        SystemExit: ``FORCE_CUDA=1`` is set and the CUDA kernels cannot be built.
    """
    plan = Plan()
    plan.info["setuptools"] = metadata.version("setuptools")
    reason = why_nothing(plan)
    if reason:
        if is_set("FORCE_CUDA"):
            raise SystemExit(f"error: FORCE_CUDA=1, but nothing can be built: {reason}")
        plan.skipped = dict.fromkeys((CPU, CUDA, BUILD_INFO), reason)
        return plan
    import torch

    plan.info["compiler"] = first_line([*plan.cxx, "--version"])
    plan.info["torch"] = torch.__version__
    plan.info["stable_abi"] = ".".join(map(str, TARGET_TORCH))
    plan.info["cpu_flags"] = " ".join(cxx_flags())
    reason = why_no_cuda(plan)
    if reason:
        if is_set("FORCE_CUDA"):
            raise SystemExit(f"error: FORCE_CUDA=1, but the CUDA kernels cannot be built: {reason}")
        plan.skipped[CUDA] = reason
    reason = why_no_build_info()
    if reason:
        plan.skipped[BUILD_INFO] = reason
    return plan


def require_torch() -> None:
    """Stop an installation that would silently lose the operators and download torch.

    Raises:
        SystemExit: torch cannot be imported, and RESOBJ_NO_EXT does not allow building without it.
    """
    if is_set("RESOBJ_NO_EXT"):
        return
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise SystemExit(NO_TORCH.format(error=error)) from error


def why_nothing(plan: Plan) -> str:
    if is_set("RESOBJ_NO_EXT"):
        return "RESOBJ_NO_EXT was set during the build"
    if sys.platform != "linux":
        return f"the kernels can only be built on Linux, this is {sys.platform}"
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for candidate in map(shlex.split, candidates):
        if shutil.which(candidate[0]):
            plan.cxx = candidate
            break
    else:
        return f"no C++ compiler found (looked for {', '.join(candidates)})"
    try:
        import torch
    except ImportError as error:
        return f"{TORCH_MISSING}: {error}"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < TARGET_TORCH:
        return f"the kernels need torch >= 2.10 to build, this is {torch.__version__}"
    return ""


def why_no_cuda(plan: Plan) -> str:
    """Fill in the plan's nvcc and architectures, or return why there are none."""
    import torch

    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    gpus = visible_gpus()
    if not gpus and not is_set("FORCE_CUDA"):
        return "no GPU was visible during the build (FORCE_CUDA=1 builds them anyway)"
    plan.nvcc = find_nvcc()
    if not plan.nvcc:
        return "nvcc not found on PATH or under CUDA_HOME"
    version = subprocess.run([plan.nvcc, "--version"], capture_output=True, text=True, check=False)
    release = re.search(r"release (\d+)\.(\d+)", version.stdout)
    if not release:
        return f"{plan.nvcc} --version failed: {version.stderr.strip()}"
    # The runtime is linked statically, so versions may differ; but a driver that is recent enough
    # for torch may be too old for a compiler of the next major version.
    newer = int(release[1]) > int(torch.version.cuda.split(".")[0])
    if newer and not is_set("FORCE_CUDA"):
        return (
            f"nvcc is CUDA {release[1]}.{release[2]}, but torch uses CUDA {torch.version.cuda}; a "
            "driver that runs this torch may not run the kernels (FORCE_CUDA=1 builds them anyway)"
        )
    archs, plan.why_archs = choose_archs(plan.nvcc, gpus)
    plan.arch_flags = cuda_arch_flags(archs)
    plan.info["cuda"] = f"{release[1]}.{release[2]}"
    plan.info["cuda_archs"] = " ".join(flag.rpartition("code=")[2] for flag in plan.arch_flags)
    return ""


def visible_gpus() -> list[str]:
    """Distinct compute capabilities of this machine's GPUs, lowest first."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return [f"{major}.{minor}" for major, minor in sorted(found)]


def choose_archs(nvcc: str, gpus: list[str]) -> tuple[list[str], str]:
    """Architectures to compile for, and how they were chosen."""
    requested = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if requested:
        return re.split(r"[;,\s]+", requested), "TORCH_CUDA_ARCH_LIST"
    listing = subprocess.run(
        [nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False
    ).stdout.split()

    def known(archs: list[str]) -> list[str]:
        return [arch for arch in archs if f"sm_{arch.replace('.', '')}" in listing]

    if gpus and known(gpus) == gpus:
        archs, why = gpus, "this machine's GPUs"
    else:
        archs, why = known(DEFAULT_ARCHS), "one per generation"
    return [*archs[:-1], *(f"{arch}+PTX" for arch in archs[-1:])], why


def cuda_arch_flags(archs: list[str]) -> list[str]:
    flags = []
    for arch in archs:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch)
        if not match:
            raise SystemExit(
                f"error: TORCH_CUDA_ARCH_LIST: {arch!r} is not understood; "
                'write versions such as "8.0;9.0+PTX"'
            )
        number = match[1] + match[2] + match[3]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match[4]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def why_no_build_info() -> str:
    try:
        import pybind11  # noqa: F401
    except ImportError:
        return "pybind11 is not installed"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's C headers are not installed"
    return ""


def find_nvcc() -> str:
    """Path of nvcc, or "". A wrapper script is fine: nvcc itself knows where its toolkit is."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which("nvcc", path=os.path.join(home, "bin")) or ""
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin") or ""


def first_line(command: list[str]) -> str:
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return output.strip().partition("\n")[0]


def cxx_flags() -> list[str]:
    return [*CXX_FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
