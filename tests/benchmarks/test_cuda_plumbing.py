"""The GPU code with a fake GPU: what is called, in which order, and what is counted."""

import warnings
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from benchmarks import cuda, memory, worker
from benchmarks.case import Target
from benchmarks.cuda import capture, count_waits

WARNING = "called a synchronizing CUDA operation"


class FakeCuda:
    """Time only passes when a call says so; nothing else happens."""

    def __init__(self):
        self.clock_ms = 0.0
        self.mode = 0
        self.capturing = False
        self.synchronized = 0
        self.allocated = self.peak = 100

    def Event(self, enable_timing):
        assert enable_timing
        event = SimpleNamespace(at=None, synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", self.clock_ms)
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def synchronize(self):
        self.synchronized += 1

    def Stream(self):
        return SimpleNamespace(wait_stream=lambda other: None)

    current_stream = Stream

    def stream(self, stream):
        return warnings.catch_warnings()  # any context manager

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: self.spend(1.0))

    def graph(self, graph):
        fake = self

        class Capture:
            def __enter__(self):
                fake.capturing = True

            def __exit__(self, *error):
                fake.capturing = False

        return Capture()

    def get_sync_debug_mode(self):
        return self.mode

    def set_sync_debug_mode(self, mode):
        self.mode = mode

    def memory_allocated(self):
        return self.allocated

    def reset_peak_memory_stats(self):
        self.peak = self.allocated

    def max_memory_allocated(self):
        return self.peak

    def spend(self, milliseconds):
        self.clock_ms += milliseconds

    def wait(self):
        """Waits, like an .item()."""
        if self.capturing:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        if self.mode == "warn":
            warnings.warn(WARNING, stacklevel=1)


@pytest.fixture
def fake():
    return FakeCuda()


def test_events_give_the_mean_of_the_calls(fake):
    sample = cuda.CudaClock(fake).time(lambda: fake.spend(3.0), repeats=4)
    assert sample.wall == pytest.approx(3e-3)
    assert sample.cpu == 0


def test_the_cache_is_flushed_before_each_call_outside_the_timing(fake):
    clock = cuda.FlushedClock(fake, device="cpu")
    flushes = []
    clock.buffer = SimpleNamespace(zero_=lambda: (flushes.append(1), fake.spend(50.0)))
    sample = clock.time(lambda: fake.spend(2.0), repeats=3)
    assert len(flushes) == 3
    assert sample.wall == pytest.approx(2e-3)


def test_a_graph_is_replayed(fake):
    calls = []
    replay, reason = cuda.capture(lambda: calls.append(fake.capturing), fake)
    assert reason == ""
    assert calls == [False, False, False, True]  # warmed up first
    replay()
    assert len(calls) == 4
    assert fake.clock_ms == 1.0


def test_a_call_that_waits_cannot_be_captured(fake):
    replay, reason = cuda.capture(fake.wait, fake)
    assert replay is None
    assert reason == "operation not permitted when stream is capturing"
    assert fake.synchronized


def test_waits_are_counted_and_the_mode_is_restored(fake):
    def call():
        fake.wait()
        warnings.warn("something else", stacklevel=1)
        fake.wait()

    assert cuda.count_waits(call, fake) == 2
    assert fake.mode == 0


def test_launches_are_the_events_on_the_gpu(fake):
    gpu, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU

    class Profile:
        def __init__(self, activities):
            assert torch.profiler.ProfilerActivity.CUDA in activities

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def events(self):
            return [SimpleNamespace(device_type=kind) for kind in (gpu, cpu, gpu, cpu, cpu)]

    assert cuda.count_launches(lambda: None, fake, Profile) == 2


def test_peak_memory_is_relative_to_the_start(fake):
    def call():
        fake.peak = 170

    assert memory.peak_bytes_cuda(call, fake) == 70


def test_a_gpu_row(fake, monkeypatch, toy_case, toy_job):
    """The worker's GPU branch from end to end; our call never waits, the peer's does."""
    monkeypatch.setattr(cuda, "FLUSH_BYTES", 64)
    monkeypatch.setattr(worker.cuda, "CudaClock", partial(cuda.CudaClock, fake))
    monkeypatch.setattr(worker.cuda, "FlushedClock", partial(cuda.FlushedClock, fake, "cpu"))
    monkeypatch.setattr(worker.cuda, "capture", lambda call: capture(call, fake))
    monkeypatch.setattr(worker.cuda, "count_waits", lambda call: count_waits(call, fake))
    # A profiler slows down the launches after it.
    refused = partial(pytest.fail, "launches were counted before the time was taken")
    monkeypatch.setattr(worker.cuda, "count_launches", lambda call: refused())
    monkeypatch.setattr(worker.memory, "peak_bytes", lambda call, device: 3 * 2**20)

    def slow_peer(x):
        def call():
            fake.spend(8.0)
            fake.wait()
            return x + x

        return call

    def ours(x):
        def call():
            fake.spend(2.0)
            return x * 2

        return call

    case = toy_case(
        make=lambda device, seed: (torch.ones(3),),
        ours=ours,
        peers={"adding": slow_peer},
        targets={"adding": Target(cpu=100, cuda=3)},
    )
    toy_job.device = "cuda"
    (row,) = worker.run_case(case, toy_job)
    assert row.comparison["ratio"] == pytest.approx(4.0)
    assert (row.target, row.verdict) == (3, "pass")
    assert row.cuda == {
        "waits": 0, "cold_ms": pytest.approx(2.0), "graph_ms": pytest.approx(1.0),
        "peer_waits": 1, "peer_cold_ms": pytest.approx(8.0),
        "peer_no_graph": "waits 1 times",
    }  # fmt: skip
    assert row.peak_mb == 3.0


def test_launches_of_every_call_are_counted(monkeypatch, toy_case, toy_job):
    monkeypatch.setattr(worker.cuda, "count_launches", lambda call: int(call()[0]))
    counts = worker.run_task(toy_case(), replace(toy_job, task=worker.LAUNCHES))
    assert counts == {"launches": {"ours": 6, "adding": 6}}  # the first number is twice the seed


def test_a_lost_context_is_noticed(monkeypatch):
    def fails():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    assert worker.context_is_lost("cuda") and not worker.context_is_lost("cpu")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert not worker.context_is_lost("cuda")
