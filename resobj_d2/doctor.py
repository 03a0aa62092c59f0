"""``python -m resobj_d2.doctor``: what is installed, what is native, and how to fix the rest.

Exits with 0 unless something is broken that the package cannot work without. A missing Detectron2
is reported, but the operators, losses and matching work without it.
"""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from . import __version__
from .command import CommandParser, run_command
from .copies import other_copies

OLDEST_TORCH = (2, 10)
OLDEST_SETUPTOOLS = 64
_ABOUT = "What is installed, what is native, and how to fix the rest."


@dataclass
class Report:
    """The results of the checks, in print order."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    broken: bool = False

    def fact(self, name: str, value: str) -> None:
        self.facts.append((name, value))

    def problem(self, what_to_do: str, *, essential: bool = False) -> None:
        self.advice.append(what_to_do)
        self.broken = self.broken or essential


def diagnose() -> Report:
    """Run every check, without changing anything or using the network."""
    report = Report()
    report.fact("python", f"{platform.python_version()} ({sys.executable})")
    _check_own_package(report)
    if _check_torch(report):
        _check_package(
            report, "torchvision", "pip install the torchvision release that matches torch"
        )
        _check_kernels(report)
        _check_gpu(report)
    _check_build_tools(report)
    _check_package(report, "fvcore", "pip install fvcore")
    _check_detectron2(report)
    _check_coco_evaluation(report)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; return the exit status."""
    CommandParser(prog="resobj-d2 doctor", description=_ABOUT).parse_args(argv)
    report = diagnose()
    width = max(len(name) for name, _ in report.facts)
    for name, value in report.facts:
        print(f"{name:<{width}}  {value}")
    print()
    if not report.advice:
        print("No problems found.")
    for line in report.advice:
        print(f"- {line}")
    return 1 if report.broken else 0


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _check_package(report: Report, package: str, what_to_do: str) -> None:
    """Checks an essential package: its version, or why it cannot be imported."""
    try:
        module = importlib.import_module(package)
    except Exception as error:  # a broken binary raises anything
        report.fact(package, f"cannot be imported: {error!r}")
        report.problem(f"{package} cannot be imported: {what_to_do}", essential=True)
    else:
        # torch's own version includes its build ("+cu130"), pip's does not.
        found = getattr(module, "__version__", None) or _version(package)
        report.fact(package, found or "version unknown")


def _check_own_package(report: Report) -> None:
    """Which copy of resobj_d2 this is, and which others exist."""
    this = Path(__file__).resolve().parent
    report.fact("resobj_d2", f"{__version__} at {this}")
    for other in other_copies(this):
        report.fact("another copy", str(other))
        report.problem(
            f"There are two copies of resobj_d2: {this} comes first on Python's path (the working "
            f"directory does with python -m and python FILE) and hides {other}. To use the latter, "
            "work in another folder. To keep only one, pip uninstall resobj_d2, or install the "
            "source folder with pip install -e"
        )


def _check_build_tools(report: Report) -> None:
    """What building from source needs besides a compiler; a wheel needs neither."""
    found = _version("setuptools")
    report.fact("setuptools", found or "not installed (building from source needs it)")
    if found and int(found.split(".")[0]) < OLDEST_SETUPTOOLS:
        report.problem(
            f"setuptools {found} is too old to build resobj_d2: "
            "pip install 'setuptools>=64,<81' wheel"
        )


def _check_torch(report: Report) -> bool:
    _check_package(report, "torch", "install torch >= 2.10, see https://pytorch.org/get-started")
    torch = sys.modules.get("torch")
    if torch is None or report.broken:
        return False
    report.fact("torch's CUDA", torch.version.cuda or "none, this is a CPU build")
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        report.problem(
            f"torch {torch.__version__} is too old: install torch >= 2.10", essential=True
        )
    return True


def _check_kernels(report: Report) -> None:
    try:
        from . import ops
        from .ops._native import cpu_capability, loaded_libraries
    except Exception as error:
        report.fact("operators", f"cannot be imported: {error}")
        report.problem(
            f"The operators cannot be imported ({error}); reinstall resobj_d2 or unset "
            "RESOBJ_REQUIRE_NATIVE",
            essential=True,
        )
        return
    status, libraries = ops.native_status(), loaded_libraries()
    for backend in ("cpu", "cuda"):
        report.fact(f"{backend} kernels", status[backend])
        if backend in libraries:
            report.fact(f"{backend} library", str(libraries[backend]))
    if capability := cpu_capability():
        report.fact("cpu instructions", capability)
    for name, value in status["build"].items():
        report.fact(f"built: {name}", value)
    if status["cpu"] != "native":
        report.problem(
            f"The CPU kernels are not in use ({status['cpu']}), slower pure torch runs instead: "
            + _how_to_build(status["cpu"])
        )
    if status["cuda"] != "native" and _has_gpu():
        report.problem(
            f"There is a GPU, but no CUDA kernels ({status['cuda']}); operators run on pure torch "
            "there: install the CUDA toolkit of torch's version and reinstall with FORCE_CUDA=1, "
            "which stops with the reason if it fails"
        )


def _how_to_build(reason: str) -> str:
    """How to get the CPU kernels that are missing for this reason."""
    again = (
        "pip install --no-build-isolation --force-reinstall --no-deps with the folder of resobj_d2"
    )
    if "no C++ compiler" in reason:
        return f"install a C++ compiler (on Debian: apt-get install g++), then {again}"
    if "torch could not be imported while building" in reason:
        return f"torch was missing, or hidden by an isolated build; it is available now, so {again}"
    if "RESOBJ_NO_EXT" in reason:
        return f"unset RESOBJ_NO_EXT, then {again}"
    return again


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _check_gpu(report: Report) -> None:
    import torch

    if not torch.cuda.is_available():
        report.fact("gpu", "none usable by torch")
        if torch.version.cuda and torch.cuda.device_count() > 0:
            report.problem("There is a GPU, but torch cannot use it: update the NVIDIA driver")
        return
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        memory = f"{gpu.total_memory / 2**30:.0f} GiB"
        report.fact(f"gpu {index}", f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {memory}")


def _check_detectron2(report: Report) -> None:
    from .install_detectron2 import DISTRIBUTION, MENDED_VERSION, InstallError, find_detectron2

    try:
        found = find_detectron2()
    except InstallError as error:
        report.fact("detectron2", str(error))
        report.problem("Looking for Detectron2 failed, see above", essential=True)
        return
    if found.is_absent:
        report.fact("detectron2", "not installed")
        report.problem(
            "Detectron2 is not installed, so training and prediction are not available: "
            "python -m resobj_d2.install_detectron2, or install upstream main yourself"
        )
        return
    if found.error is not None:
        report.fact("detectron2", f"{found.package or 'found'}, cannot be imported: {found.error}")
        report.problem(
            "Detectron2 is installed but broken: pip uninstall detectron2 detectron2-cdo, then "
            "python -m resobj_d2.install_detectron2",
            essential=True,
        )
        return
    mended = found.package == f"{DISTRIBUTION} {MENDED_VERSION}"
    origin = "the patched 0.5" if mended else found.package or "from a source folder"
    report.fact("detectron2", f"{found.version} ({origin}) at {found.origin}")


def _check_coco_evaluation(report: Report) -> None:
    faster, plain = _version("faster-coco-eval"), _version("pycocotools")
    report.fact("faster-coco-eval", faster or "not installed")
    report.fact("pycocotools", plain or "not installed")
    if plain is None:
        report.problem(
            "COCO json files cannot be read, so COCO data cannot be used: pip install pycocotools"
        )
    elif faster is None:
        report.problem("COCO evaluation runs on pycocotools; faster: pip install faster-coco-eval")


if __name__ == "__main__":
    sys.exit(run_command(main, uses_operators=False))
