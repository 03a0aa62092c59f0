"""Finds and loads the kernel libraries and remembers why one is not there.

The libraries are plain shared objects beside this file. They register kernels with torch's
dispatcher when they are loaded and know nothing of Python, so one build serves every Python and
every torch >= 2.10.
"""

from __future__ import annotations

import ctypes
import importlib
import mmap
import os
from pathlib import Path

import torch

NATIVE = "native"
# Raised whenever the schema or the meaning of an existing operator changes. The build writes it
# into the libraries: kernels of an older one take and return other things.
INTERFACE = 2
BACKENDS = ("cpu", "cuda")
_FOLDER = Path(__file__).parent
_status: dict[str, str] = {}


def library_path(backend: str) -> Path:
    """Where the build puts the kernels of ``"cpu"`` or ``"cuda"``."""
    return _FOLDER / f"libresobj_{backend}.so"


def native_status() -> dict[str, str | dict[str, str]]:
    """Which kernels are in use.

    Returns:
        ``{"cpu": ..., "cuda": ..., "build": {...}}``: for each backend ``"native"``, or why its
        operators run on the pure-torch reference instead; ``build`` says how the libraries were
        built and is empty when that is not known.
    """
    return {**_status, "build": _build_info()}


def load() -> None:
    """Load what was built. Called once, when :mod:`resobj_d2.ops` is imported.

    Raises:
        ImportError: ``RESOBJ_REQUIRE_NATIVE`` (``cpu``, ``cuda`` or ``cpu,cuda``) names kernels
            that cannot be loaded.
    """
    for backend in BACKENDS:
        _status[backend] = _load(backend)
    required = [name.strip() for name in os.environ.get("RESOBJ_REQUIRE_NATIVE", "").split(",")]
    for backend in filter(None, required):
        if backend not in BACKENDS:
            raise ImportError(
                f"RESOBJ_REQUIRE_NATIVE names {backend!r}; it takes {' and '.join(BACKENDS)}, "
                "separated by a comma"
            )
        if _status[backend] != NATIVE:
            raise ImportError(
                f"RESOBJ_REQUIRE_NATIVE asks for the {backend} kernels: {_status[backend]}"
            )


def cpu_capability() -> str | None:
    """Vector instructions the CPU kernels use, "avx512", "avx2" or "default"; None without them.

    Torch's variable ``ATEN_CPU_CAPABILITY`` limits these, too. Results do not depend on it.
    """
    if _status["cpu"] != NATIVE:
        return None
    find = ctypes.CDLL(str(library_path("cpu"))).resobj_cpu_capability
    find.restype = ctypes.c_char_p
    return find().decode()


def _load(backend: str) -> str:
    if backend == "cuda" and torch.version.cuda is None:
        return "not loaded: this torch has no CUDA"
    path = library_path(backend)
    if not path.is_file():
        return f"not built: {_reason_not_built(backend)}"
    if not _has_interface(path):
        return f"not loaded: {path} was built from other sources; build it again"
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        return f"failed to load {path}: {error}"
    return NATIVE


def _has_interface(path: Path) -> bool:
    """Whether the library's soname says :data:`INTERFACE`. Loading would register its kernels."""
    soname = f"{path.stem}-interface{INTERFACE}.so\0".encode()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(soname) >= 0


def _reason_not_built(backend: str) -> str:
    default = "no compiler when installed, or RESOBJ_NO_EXT was set"
    if backend == "cuda":
        default = "no nvcc when installed, or RESOBJ_NO_EXT was set"
    return _build_info().get(f"{backend}_not_built", default)


def _build_info() -> dict[str, str]:
    try:
        return importlib.import_module("resobj_d2._build_info").build_info()
    except ImportError:
        # Built for another Python, or not built; the kernel libraries do not depend on it.
        return {}
