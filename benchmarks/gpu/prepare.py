"""Makes the folder that carries what a machine without network lacks.

It contains ``wheels`` (Detectron2 patched, and the small packages that it and the tests need; not
torch) and ``lib``, a build of the kernels in case they cannot be built there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import REPOSITORY
from resobj_d2 import install_detectron2

# Of what `import detectron2`, the detectors and the tests import, all that is not part of every
# installation of torch and torchvision.
PACKAGES = (
    "antlr4-python3-runtime", "cloudpickle", "execnet", "fvcore", "hydra-core", "iniconfig",
    "iopath", "omegaconf", "packaging", "pluggy", "portalocker", "pybind11", "pycocotools",
    "Pygments", "pytest", "pytest-xdist", "PyYAML", "tabulate", "termcolor", "tqdm", "wheel",
    "yacs",
)  # fmt: skip
SOURCE_ONLY = ("antlr4-python3-runtime", "fvcore")  # pure Python, without wheels on the index
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
CONSTRAINTS = REPOSITORY / ".ci" / "constraints.txt"


class PrepareError(RuntimeError):
    """The folder cannot be made; the message says why."""


def prepare(folder: Path, *, python: str, arch: str) -> None:
    """Fill ``folder``, replacing what an earlier call put there.

    Args:
        python: version of the other machine's Python, for example "3.12".
        arch: compute capability of its GPU, as in ``TORCH_CUDA_ARCH_LIST``.
    """
    wheels, library = folder / "wheels", folder / "lib"
    make_empty({wheels: ".whl", library: ".so"})
    print(f"now: wheels for Python {python}", flush=True)
    fetch_wheels(wheels, python)
    try:
        install_detectron2.install(wheel=wheels)
    except install_detectron2.InstallError as error:
        raise PrepareError(str(error)) from error
    check_wheels(wheels, python)
    if shutil.which("nvcc"):
        print(f"now: the kernels for compute capability {arch}, some minutes", flush=True)
        build_kernels(library, arch)
    else:
        print("no nvcc here, so the other machine has to build the kernels")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {len(list(wheels.iterdir()))} wheels, {size / 2**20:.0f} MiB")


def make_empty(folders: dict[Path, str]) -> None:
    """Make the folders, or empty them; raise PrepareError if one has files of another ending."""
    found = {path: sorted(path.iterdir()) for path in folders if path.is_dir()}
    for path, files in found.items():
        if others := [x.name for x in files if x.suffix != folders[path]]:
            raise PrepareError(f"{path} has files of something else ({others[0]}); name another")
    for path in folders:
        path.mkdir(parents=True, exist_ok=True)
        for file in found.get(path, []):
            file.unlink()


def pinned(name: str, python: str, constraints: str) -> str:
    """``name==version`` as the constraints have it; the bare name if they do not."""
    from packaging.requirements import Requirement

    for line in constraints.splitlines():
        text = line.partition("#")[0].strip()
        if not re.match(rf"{re.escape(name)}\s*==", text, re.IGNORECASE):
            continue
        requirement = Requirement(text)
        of_python = {"python_version": python, "python_full_version": f"{python}.0"}
        if requirement.marker is None or requirement.marker.evaluate(of_python):
            return f"{requirement.name}{requirement.specifier}"
    return name


def fetch_wheels(folder: Path, python: str) -> None:
    constraints = CONSTRAINTS.read_text()
    there = ["--python-version", python, "--implementation", "cp", "--only-binary=:all:"]
    there += [f"--platform={platform}_x86_64" for platform in PLATFORMS]
    binary = [pinned(x, python, constraints) for x in PACKAGES if x not in SOURCE_ONLY]
    pip("download", "--no-deps", *there, "--dest", str(folder), *binary)
    source = [pinned(x, python, constraints) for x in SOURCE_ONLY]
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), *source)


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    if subprocess.run(command).returncode != 0:
        raise PrepareError(f"command failed, see its output above: {' '.join(command)}")


def check_wheels(folder: Path, python: str) -> None:
    """Raise PrepareError for a wheel that does not suit the other machine's Python."""
    version = python.replace(".", "")
    suits = re.compile(
        rf"-(py3-none-any|py2\.py3-none-any|(cp{version}-cp{version}|cp3\d+-abi3)-\S*manylinux\S*)"
        r"\.whl$"
    )
    wrong = [path.name for path in sorted(folder.iterdir()) if not suits.search(path.name)]
    if wrong:
        raise PrepareError(f"for another Python than {python}: {', '.join(wrong)}")


def build_kernels(folder: Path, arch: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        log = Path(temporary, "log")
        command = [sys.executable, "setup.py", "-q", "build_ext"]
        command += ["--build-lib", f"{temporary}/lib", "--build-temp", f"{temporary}/temp"]
        switches = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": arch}
        with open(log, "wb") as output:
            status = subprocess.run(
                command,
                cwd=REPOSITORY,
                env={**os.environ, **switches},
                stdout=output,
                stderr=subprocess.STDOUT,
            ).returncode
        if status != 0:
            lines = log.read_text(errors="replace").splitlines()[-20:]
            raise PrepareError("\n".join(["the kernels cannot be built:", *lines]))
        for library in Path(temporary, "lib", "resobj_d2", "ops").glob("*.so"):
            shutil.copy(library, folder)
