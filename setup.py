"""Builds the kernel libraries; all other metadata is in pyproject.toml.

Three things are built from ``csrc/``: ``resobj_d2/ops/libresobj_cpu.so`` and
``libresobj_cuda.so``, plain shared libraries on LibTorch's stable ABI without Python symbols (so
one build works with every Python and every torch >= 2.10), and the small pybind11 module
``resobj_d2._build_info``, which describes how they were built. ``csrc/build_plan.py`` decides which
of them can be built. Any of them may be missing: the operators then run on their pure-torch
reference, and ``resobj_d2/_build.json``, which every build writes, says why.

Environment:
    RESOBJ_NO_EXT=1        build nothing
    FORCE_CUDA=1           build the CUDA kernels even without a visible GPU; fail if impossible
    TORCH_CUDA_ARCH_LIST   for example "8.0;9.0+PTX"; by default this machine's GPUs, if any
    CXX, CXXFLAGS, CUDA_HOME, MAX_JOBS   as usual
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.dist_info import dist_info
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

sys.path.insert(0, str(Path(__file__).resolve().parent / "csrc"))

from build_plan import (  # noqa: E402  in an isolated build nothing else is on the path
    BUILD_INFO,
    CPU,
    CUDA,
    Plan,
    cxx_flags,
    is_set,
    make_plan,
    require_torch,
)

CSRC = Path("csrc")
CONFIGS = Path("configs")
# The package itself may need torch, which is not always there.
SCHEMAS = runpy.run_path("resobj_d2/ops/_schemas.py")
# Derived from build_plan.TARGET_TORCH.
TARGET_FLAG = "-DTORCH_TARGET_VERSION=0x020a000000000000"
NVCC_FLAGS = [
    "-O3", "-std=c++17", "--fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden", "-DUSE_CUDA",
]  # fmt: skip


def say(line: str) -> None:
    # A single write, since several threads compile.
    print(f"resobj_d2: {line}\n", end="", flush=True)


def run_compiler(command: list[str]) -> None:
    print(" ".join(command), flush=True)
    result = subprocess.run(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
    print(result.stdout, end="", flush=True)
    if result.returncode != 0:
        errors = [line for line in result.stdout.splitlines() if "error" in line.lower()]
        raise CompileError(
            f"{command[0]} failed: {errors[0] if errors else 'see its output above'}\n"
            "RESOBJ_NO_EXT=1 installs without compiled kernels."
        )


def compile_source(command: list[str], source: Path, output: Path, generated: list[Path]) -> None:
    """Run ``command -c source -o output`` unless ``output`` is up to date."""
    command = [*command, "-c", str(source), "-o", str(output)]
    stamp = output.with_suffix(".command")
    text = source.read_text()
    inputs = [source, *CSRC.rglob("*.h"), *(path for path in generated if path.name in text)]
    if (
        output.is_file()
        and stamp.is_file()
        and stamp.read_text() == " ".join(command)
        and output.stat().st_mtime > max(path.stat().st_mtime for path in inputs)
    ):
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    say(f"compiling {source}")
    run_compiler(command)
    stamp.write_text(" ".join(command))


class BuildNative(build_ext):
    """Compiles the libraries by calling the compilers directly: no Python headers or symbols."""

    def run(self) -> None:
        self.beside_sources = bool(self.inplace or getattr(self, "editable_mode", False))
        plan = make_plan()
        for line in plan.lines():
            say(line)
        for extension in self.extensions:
            if extension.name in plan.skipped:
                self.remove_stale(extension)
        self.extensions = [ext for ext in self.extensions if ext.name not in plan.skipped]
        super().run()
        self.write_record(plan)

    def write_record(self, plan: Plan) -> None:
        """Writes it next to the package's sources, or into the folder that becomes the wheel."""
        package = Path("." if self.inplace else self.build_lib, "resobj_d2")
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build.json").write_text(json.dumps(plan.record(), indent=1) + "\n")

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.rpartition(".")[2].startswith("lib"):
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def build_extension(self, extension: Extension) -> None:
        plan = make_plan()
        output = Path(self.get_ext_fullpath(extension.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        build = {CPU: self.build_cpu, CUDA: self.build_cuda, BUILD_INFO: self.build_info}
        try:
            build[extension.name](plan, extension, output)
        except CompileError as error:
            self.remove_stale(extension)
            if extension.name == CUDA and is_set("FORCE_CUDA"):
                # The extensions are optional, so setuptools would continue after a CompileError.
                raise SystemExit(f"error: FORCE_CUDA=1, but {error}") from error
            plan.skipped[extension.name] = str(error).partition("\n")[0]
            say(f"{extension.name}: left out, {error}")

    def build_cpu(self, plan: Plan, extension: Extension, output: Path) -> None:
        schemas = [f"{json.dumps(text)},\n" for text in SCHEMAS["SCHEMAS"].values()]
        generated = self.generate("schemas.inc", schemas)
        command = [*plan.cxx, *cxx_flags(), f"-I{generated.parent}", *torch_includes()]
        objects = self.compile_all(command, extension, generated)
        link = [*plan.cxx, "-shared", *objects, "-o", str(output), "-Wl,-z,defs"]
        link += [f"-Wl,-soname={SCHEMAS['soname']('cpu')}"]
        run_compiler([*link, *torch_libraries("torch_cpu")])

    def build_cuda(self, plan: Plan, extension: Extension, output: Path) -> None:
        nvcc = [plan.nvcc]
        if os.environ.get("CXX"):
            # nvcc needs the compiler itself, not a wrapper around it.
            launchers = ("ccache", "sccache", "distcc")
            nvcc += ["-ccbin", next(w for w in plan.cxx if Path(w).name not in launchers)]
        flags = [*NVCC_FLAGS, *plan.arch_flags, *torch_includes()]
        objects = self.compile_all([*nvcc, *flags], extension)
        # nvcc links the CUDA runtime statically, so the library is not tied to torch's.
        link = [*nvcc, "-shared", *objects, "-o", str(output), "-Xlinker=-z,defs"]
        link += [f"-Xlinker=-soname={SCHEMAS['soname']('cuda')}"]
        run_compiler([*link, *torch_libraries("torch_cpu", "torch_cuda")])

    def build_info(self, plan: Plan, extension: Extension, output: Path) -> None:
        import pybind11

        entries = [
            f"{{{json.dumps(key)}, {json.dumps(value)}}},\n" for key, value in plan.record().items()
        ]
        generated = self.generate("build_info_entries.inc", entries)
        includes = [f"-I{generated.parent}", "-isystem", pybind11.get_include()]
        includes += ["-isystem", sysconfig.get_path("include")]
        source = Path(extension.sources[0])
        flags = ["-O1", "-std=c++17", "-fPIC", "-fvisibility=hidden", *includes]
        run_compiler([*plan.cxx, *flags, "-shared", str(source), "-o", str(output)])

    def generate(self, name: str, lines: list[str]) -> Path:
        """A file for the sources to include; an unchanged one is not touched."""
        path = Path(self.build_temp, "generated", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text() != "".join(lines):
            path.write_text("".join(lines))
        return path

    def compile_all(self, command: list[str], extension: Extension, *generated: Path) -> list[str]:
        command = [*command, TARGET_FLAG, f"-I{CSRC / 'include'}"]
        sources = [Path(path) for path in extension.sources if not path.endswith(".h")]
        objects = [Path(self.build_temp, f"{source}.o") for source in sources]
        workers = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            jobs = [
                pool.submit(compile_source, command, source, output, list(generated))
                for source, output in zip(sources, objects, strict=True)
            ]
            for job in jobs:
                job.result()
        return [str(path) for path in objects]

    def remove_stale(self, extension: Extension) -> None:
        """Removes what an earlier build left, so that it is not mistaken for this one's result."""
        paths = [Path(self.build_lib, self.get_ext_filename(extension.name))]
        if self.beside_sources:  # setuptools clears ``inplace`` while it compiles
            paths.append(Path(self.get_ext_filename(extension.name)))
        for path in paths:
            path.unlink(missing_ok=True)


class WithConfigs(build_py):
    """Copies ``configs/`` into the package; in a checkout or editable install it stays outside."""

    def run(self) -> None:
        super().run()
        for source, target in self.config_files().items():
            self.mkpath(os.path.dirname(target))
            self.copy_file(source, target)

    def config_files(self) -> dict[str, str]:
        if getattr(self, "editable_mode", False):
            return {}
        files = [p for pattern in ("*.yaml", "*.csv") for p in sorted(CONFIGS.rglob(pattern))]
        return {str(p): str(Path(self.build_lib, "resobj_d2", p)) for p in files}

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *self.config_files().values()]


class Metadata(dist_info):
    """Checks for torch before pip downloads the package's dependencies."""

    def run(self) -> None:
        require_torch()
        super().run()


class PlainWheel(bdist_wheel):
    """Tagged py3-none, as the libraries do not depend on the Python version; pure without them."""

    def run(self) -> None:
        require_torch()
        super().run()

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = CPU in make_plan().skipped

    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        return "py3", "none", platform


class WholeSource(sdist):
    """Includes everything that the README's commands use, not only what is installed or built."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        patterns = (
            "configs/**/*", "csrc/*.md", "csrc/*.py", "docs/**/*", "tests/**/*.py", "tests/**/*.h",
            "studies/**/*", "train_net.py",
        )  # fmt: skip
        found = {str(path) for pattern in patterns for path in Path().glob(pattern)}
        more = sorted(name for name in found - set(files) if os.path.isfile(name))
        super().make_release_tree(base_dir, [*files, *more])


def torch_folder() -> Path:
    import torch

    return Path(torch.__file__).parent


def torch_includes() -> list[str]:
    return ["-isystem", str(torch_folder() / "include")]


def torch_libraries(*names: str) -> list[str]:
    return [f"-L{torch_folder() / 'lib'}", *(f"-l{name}" for name in names)]


def native_extension(name: str, pattern: str) -> Extension:
    sources = sorted(map(str, CSRC.glob(pattern)))
    # Headers count as sources: that puts them into the sdist with every setuptools.
    headers = sorted(map(str, CSRC.rglob("*.h")))
    # Optional: a library that cannot be built must not stop the installation.
    return Extension(name, [*sources, *headers], optional=True)


setup(
    ext_modules=[
        native_extension(CPU, "cpu/*.cpp"),
        native_extension(CUDA, "cuda/*.cu"),
        native_extension(BUILD_INFO, "build_info.cpp"),
    ],
    cmdclass={
        "build_ext": BuildNative,
        "build_py": WithConfigs,
        "bdist_wheel": PlainWheel,
        "dist_info": Metadata,
        "sdist": WholeSource,
    },
)
