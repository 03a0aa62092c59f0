"""Finds and loads the kernel libraries and remembers why one is not there.

The libraries are plain shared objects beside this file. They register kernels with torch's
dispatcher when they are loaded and know nothing of Python, so one build serves every Python and
every torch >= 2.10. ``resobj_d2/_build.json`` says what the build made, and why not the rest.
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

NATIVE = "native"
# Raised whenever the schema or the meaning of an existing operator changes. The build writes it
# into the libraries: kernels of an older one take and return other things.
INTERFACE = 2
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
        ``{"cpu": ..., "cuda": ..., "build": {...}}``: for each backend ``"native"``, or why its
        operators run on the pure-torch reference instead; ``build`` says how the libraries were
        built and is empty when that is not known. Its ``"borrowed from"`` is there where the
        libraries are those of another copy of the package.
    """
    return {**_status, "build": _build_facts()}


def describe_operators() -> str:
    """One line for people: which operators run and, where it is not the fast ones, why."""
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
    find = ctypes.CDLL(str(_loaded["cpu"])).resobj_cpu_capability
    find.restype = ctypes.c_char_p
    return find().decode()


def read_build_record(package: Path) -> dict[str, str]:
    """What the last build in a package's folder wrote down; empty where there was none."""
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
    if not _has_interface(path):
        return f"not loaded: {path} was built from other sources; build it again"
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        return f"failed to load {path}: {error}"
    _loaded[backend] = path
    return NATIVE


def _find_library(backend: str) -> Path | None:
    """This package's own library; in a source folder that was never built, an installed one's.

    A folder with a record was built, and what is missing there is missing for a reason.
    """
    path = library_path(backend)
    if path.is_file():
        return path
    if any(library_path(b).is_file() for b in BACKENDS) or read_build_record(_FOLDER.parent):
        return None
    candidates = [folder / "ops" / _name(backend) for folder in other_copies(_FOLDER.parent)]
    return next((p for p in candidates if p.is_file() and _has_interface(p)), None)


def _has_interface(path: Path) -> bool:
    """Whether the library's soname says :data:`INTERFACE`. Loading would register its kernels."""
    soname = f"{path.stem}-interface{INTERFACE}.so\0".encode()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return text.find(soname) >= 0
    except (OSError, ValueError):  # unreadable, or empty as an interrupted build leaves it
        return False


def _reason_not_built(backend: str) -> str:
    record = _build_record()
    if record or any(library_path(b).is_file() for b in BACKENDS):
        return record.get(f"{backend}_not_built", "the build left no record of it")
    return NEVER_BUILT


def _build_record() -> dict[str, str]:
    """Of the package whose libraries are in use; its compiled module has the facts alone."""
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
