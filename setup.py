"""Builds the kernel libraries; all other metadata is in pyproject.toml.

Three things are built from ``csrc/``: ``resobj_d2/ops/libresobj_cpu.so`` and
``libresobj_cuda.so``, plain shared libraries on LibTorch's stable ABI without Python symbols (so
one build serves every Python and every torch >= 2.10), and the small pybind11 module
``resobj_d2._build_info``, which says how they were built. Any of them may be missing: the operators
then run on their pure-torch reference, and ``python -m resobj_d2.doctor`` says why.

Environment:
    RESOBJ_NO_EXT=1        build nothing
    FORCE_CUDA=1           fail unless the CUDA kernels are built
    TORCH_CUDA_ARCH_LIST   for example "8.0;9.0+PTX"
    CXX, CXXFLAGS, CUDA_HOME, MAX_JOBS as usual
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

CSRC = Path("csrc")
CONFIGS = Path("configs")
CPU = "resobj_d2.ops.libresobj_cpu"
CUDA = "resobj_d2.ops.libresobj_cuda"
BUILD_INFO = "resobj_d2._build_info"

# The oldest torch whose stable ABI the kernels use; they run on this one and all newer ones.
TARGET_TORCH = (2, 10)
TARGET_FLAG = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# No contraction to fused multiply-add anywhere: CPU, CUDA and the reference must agree on ties.
CXX_FLAGS = [
    "-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra",
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
]  # fmt: skip
NVCC_FLAGS = [
    "-O3", "-std=c++17", "--fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden", "-DUSE_CUDA",
]  # fmt: skip
# One architecture per major version runs on the whole major; PTX of the last serves newer ones.
DEFAULT_ARCHS = ["7.5", "8.0", "9.0", "10.0", "12.0"]


@dataclass
class Plan:
    """What can be built here. ``skipped`` maps an extension to the reason it cannot."""

    cxx: list[str] = field(default_factory=list)
    nvcc: str = ""
    arch_flags: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    info: dict[str, str] = field(default_factory=dict)


def is_set(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def first_line(command: list[str]) -> str:
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return output.strip().partition("\n")[0]


@functools.cache
def make_plan() -> Plan:
    plan = Plan()
    reason = why_nothing(plan)
    if reason:
        if is_set("FORCE_CUDA"):
            raise SystemExit(f"FORCE_CUDA=1, but nothing can be built: {reason}")
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
            raise SystemExit(f"FORCE_CUDA=1, but the CUDA kernels cannot be built: {reason}")
        plan.skipped[CUDA] = reason
    reason = why_no_build_info()
    if reason:
        plan.skipped[BUILD_INFO] = reason
    return plan


def why_nothing(plan: Plan) -> str:
    if is_set("RESOBJ_NO_EXT"):
        return "RESOBJ_NO_EXT is set"
    if sys.platform != "linux":
        return f"the kernels are built on Linux only, this is {sys.platform}"
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
        return f"torch cannot be imported while building: {error}"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < TARGET_TORCH:
        return f"the kernels need torch >= 2.10 to build, this is {torch.__version__}"
    return ""


def why_no_cuda(plan: Plan) -> str:
    import torch

    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    plan.nvcc = find_nvcc()
    if not plan.nvcc:
        return "nvcc not found on PATH or under CUDA_HOME"
    version = subprocess.run([plan.nvcc, "--version"], capture_output=True, text=True, check=False)
    release = re.search(r"release (\d+)\.(\d+)", version.stdout)
    if not release:
        return f"{plan.nvcc} --version does not answer: {version.stderr.strip()}"
    # The runtime is linked statically, so versions may differ, but a driver that is recent enough
    # for torch need not be for a compiler of the next major version.
    newer = int(release[1]) > int(torch.version.cuda.split(".")[0])
    if newer and not is_set("FORCE_CUDA"):
        return (
            f"nvcc is of CUDA {release[1]}.{release[2]}, torch of {torch.version.cuda}; a driver "
            "that runs this torch may not run the kernels (FORCE_CUDA=1 builds them all the same)"
        )
    plan.arch_flags = cuda_arch_flags(plan.nvcc)
    plan.info["cuda"] = f"{release[1]}.{release[2]}"
    plan.info["cuda_archs"] = " ".join(flag.rpartition("code=")[2] for flag in plan.arch_flags)
    return ""


def why_no_build_info() -> str:
    try:
        import pybind11  # noqa: F401
    except ImportError:
        return "pybind11 is not installed"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's C headers are not installed"
    return ""


def find_nvcc() -> str:
    """Path of nvcc, or "". A wrapper script will do: nvcc itself knows where its toolkit is."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which("nvcc", path=os.path.join(home, "bin")) or ""
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin") or ""


def cuda_arch_flags(nvcc: str) -> list[str]:
    requested = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if requested:
        archs = re.split(r"[;,\s]+", requested)
    else:
        listing = subprocess.run(
            [nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False
        ).stdout.split()
        archs = [arch for arch in DEFAULT_ARCHS if f"sm_{arch.replace('.', '')}" in listing]
        archs[-1:] = [f"{arch}+PTX" for arch in archs[-1:]]
    flags = []
    for arch in archs:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch)
        if not match:
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST: {arch!r} is not understood; "
                'write versions such as "8.0;9.0+PTX"'
            )
        number = match[1] + match[2] + match[3]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match[4]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def cxx_flags() -> list[str]:
    return [*CXX_FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]


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


def compile_source(command: list[str], source: Path, output: Path) -> None:
    """Run ``command -c source -o output`` unless ``output`` is up to date."""
    command = [*command, "-c", str(source), "-o", str(output)]
    stamp = output.with_suffix(".command")
    inputs = [source, *CSRC.rglob("*.h")]
    if (
        output.is_file()
        and stamp.is_file()
        and stamp.read_text() == " ".join(command)
        and output.stat().st_mtime > max(path.stat().st_mtime for path in inputs)
    ):
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    run_compiler(command)
    stamp.write_text(" ".join(command))


class BuildNative(build_ext):
    """Compiles the libraries by calling the compilers: no Python headers, no Python symbols."""

    def run(self) -> None:
        plan = make_plan()
        for extension in self.extensions:
            if extension.name in plan.skipped:
                print(f"resobj_d2: {extension.name} not built: {plan.skipped[extension.name]}")
                self.remove_stale(extension)
        self.extensions = [ext for ext in self.extensions if ext.name not in plan.skipped]
        super().run()

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.rpartition(".")[2].startswith("lib"):
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def build_extension(self, extension: Extension) -> None:
        plan = make_plan()
        output = Path(self.get_ext_fullpath(extension.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        if extension.name == CPU:
            self.build_cpu(plan, extension, output)
        elif extension.name == CUDA:
            self.build_cuda(plan, extension, output)
        else:
            self.build_info(plan, extension, output)

    def build_cpu(self, plan: Plan, extension: Extension, output: Path) -> None:
        objects = self.compile_all([*plan.cxx, *cxx_flags(), *torch_includes()], extension)
        link = [*plan.cxx, "-shared", *objects, "-o", str(output), "-Wl,-z,defs"]
        link += [f"-Wl,-soname={soname(output)}"]
        run_compiler([*link, *torch_libraries("torch_cpu")])

    def build_cuda(self, plan: Plan, extension: Extension, output: Path) -> None:
        nvcc = [plan.nvcc]
        if os.environ.get("CXX"):
            # nvcc wants the compiler itself, not a program that calls it.
            launchers = ("ccache", "sccache", "distcc")
            nvcc += ["-ccbin", next(w for w in plan.cxx if Path(w).name not in launchers)]
        try:
            flags = [*NVCC_FLAGS, *plan.arch_flags, *torch_includes()]
            objects = self.compile_all([*nvcc, *flags], extension)
            # nvcc links the CUDA runtime statically, so the library is not tied to torch's.
            link = [*nvcc, "-shared", *objects, "-o", str(output), "-Xlinker=-z,defs"]
            link += [f"-Xlinker=-soname={soname(output)}"]
            run_compiler([*link, *torch_libraries("torch_cpu", "torch_cuda")])
        except CompileError as error:
            if is_set("FORCE_CUDA"):
                raise
            reason = str(error).partition("\n")[0]
            print(f"resobj_d2: {CUDA} not built: {reason}")
            plan.skipped[CUDA] = reason
            self.remove_stale(extension)

    def build_info(self, plan: Plan, extension: Extension, output: Path) -> None:
        import pybind11

        info = dict(plan.info)
        if CUDA in plan.skipped:
            info["cuda_not_built"] = plan.skipped[CUDA]
        generated = Path(self.build_temp, "generated")
        generated.mkdir(parents=True, exist_ok=True)
        entries = [f"{{{json.dumps(key)}, {json.dumps(value)}}},\n" for key, value in info.items()]
        header = generated / "build_info_entries.inc"
        if not header.is_file() or header.read_text() != "".join(entries):
            header.write_text("".join(entries))
        includes = [f"-I{generated}", "-isystem", pybind11.get_include()]
        includes += ["-isystem", sysconfig.get_path("include")]
        source = Path(extension.sources[0])
        flags = ["-O1", "-std=c++17", "-fPIC", "-fvisibility=hidden", *includes]
        run_compiler([*plan.cxx, *flags, "-shared", str(source), "-o", str(output)])

    def compile_all(self, command: list[str], extension: Extension) -> list[str]:
        command = [*command, TARGET_FLAG, f"-I{CSRC / 'include'}"]
        sources = [Path(path) for path in extension.sources if not path.endswith(".h")]
        objects = [Path(self.build_temp, f"{source}.o") for source in sources]
        workers = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(compile_source, [command] * len(sources), sources, objects))
        return [str(path) for path in objects]

    def remove_stale(self, extension: Extension) -> None:
        """What an earlier build left must not be taken for the result of this one."""
        paths = [Path(self.build_lib, self.get_ext_filename(extension.name))]
        if self.inplace or getattr(self, "editable_mode", False):
            paths.append(Path(self.get_ext_filename(extension.name)))
        for path in paths:
            path.unlink(missing_ok=True)


class WithConfigs(build_py):
    """Puts ``configs/`` into the package; in a checkout, also an editable one, it stays outside."""

    def run(self) -> None:
        super().run()
        for source, target in self.config_files().items():
            self.mkpath(os.path.dirname(target))
            self.copy_file(source, target)

    def config_files(self) -> dict[str, str]:
        if getattr(self, "editable_mode", False):
            return {}
        files = [p for pattern in ("*.yaml", "zoo.csv") for p in sorted(CONFIGS.rglob(pattern))]
        return {str(p): str(Path(self.build_lib, "resobj_d2", p)) for p in files}

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *self.config_files().values()]


class PlainWheel(bdist_wheel):
    """The libraries do not depend on the Python version, and without them nothing is native."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = CPU in make_plan().skipped

    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        return "py3", "none", platform


def soname(library: Path) -> str:
    """What ``resobj_d2.ops._native`` looks for in a library before it loads it."""
    source = Path("resobj_d2/ops/_native.py").read_text()
    interface = re.search(r"^INTERFACE = (\d+)$", source, re.MULTILINE)[1]
    return f"{library.stem}-interface{interface}.so"


class WholeSource(sdist):
    """Everything that the README's commands use, not only what is installed or compiled."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        patterns = (
            "configs/**/*", "csrc/*.md", "docs/**/*", "tests/**/*.py", "tests/**/*.h",
            "train_net.py",
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
    # Headers among the sources: that is what puts them into the sdist, whatever the setuptools.
    headers = sorted(map(str, CSRC.rglob("*.h")))
    # Optional: a library that was not built must not stop the installation.
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
        "sdist": WholeSource,
    },
)
