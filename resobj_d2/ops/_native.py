"""Finds and loads the kernel libraries, and records why one is missing.

The libraries are plain shared objects next to this file. On loading they register kernels with
torch's dispatcher, and that of the CPU defines the operators; they do not depend on Python, so one
build works with every Python version and every torch >= 2.10. ``resobj_d2/_build.json`` records
what was built, and why the rest was not.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import mmap
import os
from pathlib import Path

import torch

from resobj_d2.copies import other_copies

from ._schemas import soname

NATIVE = "native"
BACKENDS = ("cpu", "cuda")
NEVER_BUILT = (
    "this source folder was never built: run `pip install --no-build-isolation -e .` in it"
)
_FOLDER = Path(__file__).parent
_status: dict[str, str] = {}
_loaded: dict[str, Path] = {}


def library_path(backend: str) -> Path:
    """Where the build puts the kernels of ``"cpu"`` or ``"cuda"``."""
    return _FOLDER / _name(backend)


def native_status() -> dict[str, str | dict[str, str]]:
    """Which kernels are in use.

    Returns:
        ``{"cpu": ..., "cuda": ..., "build": {...}}``: for each backend ``"native"``, or the reason
        why its operators run on the pure-torch reference instead. ``build`` describes how the
        libraries were built (empty if unknown); it has a key ``"borrowed from"`` if the libraries
        belong to another copy of the package.
    """
    return {**_status, "build": _build_facts()}


def describe_operators() -> str:
    """One line for people: which operators run and, if they are not the fast ones, why."""
    missing = {b: _status[b].removeprefix("not built: ") for b in BACKENDS if _status[b] != NATIVE}
    reasons = "; ".join(dict.fromkeys(missing.values()))
    native = f"native CPU ({cpu_capability()})"
    line = {
        (): f"{native}, native CUDA",
        ("cuda",): f"{native}, no CUDA kernels: {reasons}",
        ("cpu",): f"native CUDA, slower pure torch on the CPU: {reasons}",
        BACKENDS: f"slower pure torch, no native kernels: {reasons}",
    }[tuple(missing)]
    origin = _borrowed_from()
    return f"operators: {line}" + (f" (libraries of {origin})" if origin else "")


def load() -> None:
    """Load the libraries that were built. Called once, before Python defines any operator.

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
                "comma-separated"
            )
        if _status[backend] != NATIVE:
            raise ImportError(
                f"RESOBJ_REQUIRE_NATIVE requires the {backend} kernels: {_status[backend]}"
            )


def cpu_capability() -> str | None:
    """Vector instructions the CPU kernels use: "avx512", "avx2" or "default"; None without kernels.

    Torch's variable ``ATEN_CPU_CAPABILITY`` limits them too. Results do not depend on it.
    """
    if _status["cpu"] != NATIVE:
        return None
    find = ctypes.CDLL(str(_loaded["cpu"])).resobj_cpu_capability
    find.restype = ctypes.c_char_p
    return find().decode()


def loaded_libraries() -> dict[str, Path]:
    """By backend, the files of the kernels in use: a C++ program can load them too."""
    return dict(_loaded)


def read_build_record(package: Path) -> dict[str, str]:
    """The record that the last build left in a package's folder; empty if there is none."""
    try:
        return json.loads((package / "_build.json").read_text())
    except (OSError, ValueError):
        return {}


def _name(backend: str) -> str:
    return f"libresobj_{backend}.so"


def _load(backend: str) -> str:
    if backend == "cuda" and torch.version.cuda is None:
        return "not loaded: this torch has no CUDA"
    path = _find_library(backend)
    if path is None:
        return f"not built: {_reason_not_built(backend)}"
    if not _fits(path, backend):
        return f"not loaded: {path} was built from a different version of the sources; rebuild it"
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        return f"failed to load {path}: {error}"
    _loaded[backend] = path
    return NATIVE


def _find_library(backend: str) -> Path | None:
    """This package's own library or, in a source folder that was never built, an installed one.

    A folder with a build record was built; a library missing there is missing for a reason.
    """
    path = library_path(backend)
    if path.is_file():
        return path
    if any(library_path(b).is_file() for b in BACKENDS) or read_build_record(_FOLDER.parent):
        return None
    candidates = [folder / "ops" / _name(backend) for folder in other_copies(_FOLDER.parent)]
    return next((p for p in candidates if p.is_file() and _fits(p, backend)), None)


def _fits(path: Path, backend: str) -> bool:
    """Whether the library has the soname of these sources; checked without loading it."""
    name = soname(backend).encode() + b"\0"
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return text.find(name) >= 0
    except (OSError, ValueError):  # unreadable, or empty as an interrupted build leaves it
        return False


def _reason_not_built(backend: str) -> str:
    record = _build_record()
    if record or any(library_path(b).is_file() for b in BACKENDS):
        return record.get(f"{backend}_not_built", "the build left no record of it")
    return NEVER_BUILT


def _build_record() -> dict[str, str]:
    """Record of the package in use; its compiled module knows how it was built, not what failed."""
    package = _in_use()
    record = read_build_record(package)
    if not record and package == _FOLDER.parent:
        with contextlib.suppress(ImportError):  # not built, or for another Python
            module = importlib.import_module("resobj_d2._build_info")
            if (
                Path(str(module.__file__)).parent == package
            ):  # an editable copy's finder offers its own
                record = module.build_info()
    return record


def _in_use() -> Path:
    """Folder of the package whose libraries are loaded."""
    return next(iter(_loaded.values())).parents[1] if _loaded else _FOLDER.parent


def _borrowed_from() -> Path | None:
    return _in_use() if _in_use() != _FOLDER.parent else None


def _build_facts() -> dict[str, str]:
    facts = {k: v for k, v in _build_record().items() if not k.endswith("_not_built")}
    origin = _borrowed_from()
    return {"borrowed from": str(origin), **facts} if origin else facts
