"""Allocator settings, and the peak memory of a call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# glibc returns large freed blocks to the system, so the next tensor pays a page fault for every
# 4 KiB. Eager code, which makes many tensors, suffers most. "warm" keeps the pages, which favours
# the peers; "default" is what users have without any settings.
MALLOC: dict[str, dict[str, str]] = {
    "warm": {
        "MALLOC_MMAP_THRESHOLD_": str(8 * 2**30),
        "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
        "MALLOC_TOP_PAD_": str(256 * 2**20),
    },
    "default": {},
}

M_MMAP_THRESHOLD = -3  # for mallopt in glibc
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """Peak memory during one more call, beyond what was in use before it.

    Returns:
        Bytes, including the call's result; None if the system does not report it.
    """
    if device.type == "cuda":
        return peak_bytes_cuda(call, torch.cuda)
    if not (_CLEAR_REFS.exists() and give_freed_pages_back()):
        return None
    _CLEAR_REFS.write_text("5")  # resets VmHWM, the high-water mark, to the resident size
    before = _status_bytes("VmRSS")
    result = call()
    peak = _status_bytes("VmHWM")
    del result
    return max(0, peak - before)


def peak_bytes_cuda(call: Callable[[], Any], cuda) -> int:
    """The same on a GPU; ``cuda`` is ``torch.cuda`` or a test's replacement."""
    cuda.synchronize()
    before = cuda.memory_allocated()
    cuda.reset_peak_memory_stats()
    result = call()
    cuda.synchronize()
    peak = cuda.max_memory_allocated() - before
    del result
    return peak


def give_freed_pages_back() -> bool:
    """Return all free pages to the system, so that every page that the call uses counts."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)
    except (OSError, AttributeError):
        return False
    return True


def _status_bytes(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no entry {name}")
