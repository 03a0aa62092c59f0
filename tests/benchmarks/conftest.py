"""A case small enough for a test."""

import pytest
import torch

from benchmarks.case import Case, Target
from benchmarks.worker import Job


def make(device, seed):
    return (torch.arange(8.0, device=device) + seed,)


def double(x):
    return lambda: x * 2


def add_twice(x):
    return lambda: x + x


def equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.fixture
def toy_case():
    """A function: overrides to a case that doubles eight numbers."""

    def build(**changes):
        fields = {
            "id": "X",
            "size": "8",
            "make": make,
            "ours": double,
            "peers": {"adding": add_twice},
            "verify": equal,
            "targets": {"adding": Target(cpu=1e-3)},
            "min_rounds": 2,
        }
        return Case(**{**fields, **changes})

    return build


@pytest.fixture
def toy_job():
    return Job([], "cpu", [1], "warm", budget=0.0, seed=3, rates={"1": {"read": 1e9, "fill": 1e9}})
