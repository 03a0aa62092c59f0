"""GPU specifics: events, a cold cache, CUDA graphs, launches and waits.

Functions take ``cuda``, which is ``torch.cuda`` except in tests on machines without a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from .comparison import Sample

FLUSH_BYTES = 256 * 2**20  # several times the largest L2 cache of current GPUs
SYNC_WARNING = "called a synchronizing"


class CudaClock:
    """Time between two events around the calls on the current stream.

    That is the GPU's time, or the host's if the host cannot launch fast enough.
    """

    def __init__(self, cuda=torch.cuda) -> None:
        self.cuda = cuda

    def time(self, call: Callable[[], Any], repeats: int) -> Sample:
        start, end = (self.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return Sample(start.elapsed_time(end) * 1e-3 / repeats, cpu=0.0)


class FlushedClock(CudaClock):
    """The same, with the L2 cache overwritten before each call, outside the timing."""

    def __init__(self, cuda=torch.cuda, device: str = "cuda") -> None:
        super().__init__(cuda)
        self.buffer = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def time(self, call: Callable[[], Any], repeats: int) -> Sample:
        total = 0.0
        for _ in range(repeats):
            self.buffer.zero_()
            total += super().time(call, 1).wall
        return Sample(total / repeats, cpu=0.0)


def capture(call: Callable[[], Any], cuda=torch.cuda) -> tuple[Callable[[], Any] | None, str]:
    """Captures the call as a CUDA graph, which removes the host's share of the time.

    Returns:
        A function that replays it and "", or None and why it cannot be captured, for example
        because it waits for the GPU.
    """
    stream = cuda.Stream()
    stream.wait_stream(cuda.current_stream())
    graph = cuda.CUDAGraph()
    try:
        with cuda.stream(stream):
            for _ in range(3):  # libraries initialise in the first calls
                call()
        cuda.current_stream().wait_stream(stream)
        with cuda.graph(graph):
            result = call()
    except RuntimeError as error:
        cuda.synchronize()
        return None, str(error).partition("\n")[0]

    def replay() -> Any:
        graph.replay()
        return result

    return replay, ""


def count_waits(call: Callable[[], Any], cuda=torch.cuda) -> int:
    """How often the host waits for the GPU during a call."""
    before = cuda.get_sync_debug_mode()
    cuda.synchronize()
    cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        cuda.set_sync_debug_mode(before)
    return sum(SYNC_WARNING in str(warning.message) for warning in caught)


def count_launches(call: Callable[[], Any], cuda=torch.cuda, profile=torch.profiler.profile) -> int:
    """Number of kernels, copies and fills that a call launches on the GPU."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    cuda.synchronize()
    with profile(activities=activities) as profiler:
        call()
        cuda.synchronize()
    on_gpu = torch.autograd.DeviceType.CUDA
    return sum(event.device_type == on_gpu for event in profiler.events())
