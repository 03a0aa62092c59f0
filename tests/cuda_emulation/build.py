"""Builds the CUDA kernels for the CPU, in place of the CPU kernels: see ``emulation.h``.

    python -m tests.cuda_emulation.build FOLDER

copies the package and the operators' tests to FOLDER, where the CUDA kernels run in place of the
CPU kernels; ``python -m pytest tests/ops`` in FOLDER tests them.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from resobj_d2.ops._schemas import soname

REPOSITORY = Path(__file__).resolve().parents[2]
# Fortified, _longjmp refuses to go from one stack to another.
FLAGS = ["-O1", "-U_FORTIFY_SOURCE", "-std=c++17", "-fPIC", "-fvisibility=hidden",
         "-ffp-contract=off",
         "-DTORCH_TARGET_VERSION=0x020a000000000000"]  # fmt: skip
RENAMED = {
    "STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CUDA, m)": "STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m)",
    "torch::stable::accelerator::DeviceGuard": "emulation::DeviceGuard",
    "aoti_torch_get_current_cuda_stream": "emulation::current_stream",
    "STD_CUDA_KERNEL_LAUNCH_CHECK();": "",
    "<cuda_runtime.h>": '"emulation.h"',
}


def translate(source: str) -> str:
    """Translates CUDA C++ to C++ for the CPU: launches become calls, and a few names change.

    ``kernel<T><<<grid, block, 0, stream>>>(x)`` becomes ``emulation::Launch(grid, block, 0,
    stream)([](auto... a) { kernel<T>(a...); }, x)``.
    """
    for name, other in RENAMED.items():
        source = source.replace(name, other)
    while (launch := source.find("<<<")) >= 0:
        start = _start_of_kernel(source, launch)
        close = source.index(">>>", launch)
        kernel, options = source[start:launch].strip(), source[launch + 3 : close]
        if source[close + 3] != "(":
            raise ValueError(f"no arguments after the launch of {kernel}")
        call = f"emulation::Launch({options})([](auto... a) {{ {kernel}(a...); }}, "
        source = source[:start] + call + source[close + 4 :]
    return source


def _start_of_kernel(source: str, end: int) -> int:
    """Where the name before ``<<<`` starts, including template arguments."""
    position = len(source[:end].rstrip())
    if source[position - 1] == ">":
        depth = 0
        while True:
            position -= 1
            depth += {">": 1, "<": -1}.get(source[position], 0)
            if depth == 0:
                break
    return re.search(r"\w+\s*$", source[:position]).start()


def build(folder: Path) -> None:
    """Build into ``folder`` (see above), which must not exist."""
    generated = folder / "csrc"
    generated.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("emulation.h"), generated)
    sources = []
    for path in sorted((REPOSITORY / "csrc" / "cuda").iterdir()):
        output = generated / (f"{path.stem}.cpp" if path.suffix == ".cu" else path.name)
        output.write_text(f'#line 1 "{path.name}"\n' + translate(path.read_text()))
        sources += [output] if path.suffix == ".cu" else []
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "test_cuda_emulation.py")
    shutil.copytree(REPOSITORY / "resobj_d2", folder / "resobj_d2", ignore=ignored)
    shutil.copytree(REPOSITORY / "tests" / "ops", folder / "tests" / "ops", ignore=ignored)
    (folder / "tests" / "cuda_emulation").mkdir()
    for name in ("pyproject.toml", "tests/conftest.py", "tests/cuda_emulation/poison.py"):
        shutil.copy(REPOSITORY / name, folder / name)
    _compile_library(sources, folder / "resobj_d2" / "ops" / "libresobj_cpu.so")


def compile_program(source: str, output: Path) -> Path:
    """Compile CUDA C++ that has a ``main`` and needs no torch; returns ``output``."""
    path = output.with_suffix(".cpp")
    path.write_text(translate(source))
    _run([*_compiler(), *FLAGS, f"-I{Path(__file__).parent}", str(path), "-o", str(output)])
    return output


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "c++"))


def _compile_library(sources: list[Path], library: Path) -> None:
    compiler = _compiler()
    root = Path(torch.__file__).parent
    common = sources[0].with_name("cuda_utils.h")  # which includes torch
    includes = [f"-I{REPOSITORY / 'csrc' / 'include'}", "-isystem", str(root / "include")]
    extra = shlex.split(os.environ.get("CXXFLAGS", ""))

    compile_ = [*compiler, *FLAGS, *extra, *includes]
    _run([*compile_, "-x", "c++-header", str(common), "-o", f"{common}.gch"])

    def compile_one(source: Path) -> str:
        target = source.with_suffix(".o")
        _run([*compile_, "-include", str(common), "-c", str(source), "-o", str(target)])
        return str(target)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(compile_one, sources))
    link = ["-shared", *objects, "-o", str(library), f"-Wl,-soname={soname('cpu')}"]
    _run([*compiler, *extra, *link, f"-L{root / 'lib'}", "-ltorch_cpu"])


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{result.stderr}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to; must not exist")
    build(parser.parse_args().folder)
