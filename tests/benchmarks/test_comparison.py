"""Ratios, noise, verdicts and what --check counts as a failure, by hand."""

from types import SimpleNamespace

import pytest

from benchmarks import worker
from benchmarks.case import Target
from benchmarks.comparison import Sample, compare, failures, verdict


def samples(*walls, cpu=None):
    return [Sample(wall, wall if cpu is None else cpu) for wall in walls]


def test_ratio_is_the_median_of_the_rounds_not_of_the_times():
    # Both are ten times slower in the second and third round: within each round 2, 4 and 3.
    found = compare(samples(1.0, 10.0, 10.0), samples(2.0, 40.0, 30.0), threads=1)
    assert found.ratio == 3.0
    # Quantiles of {2, 3, 4} with linear interpolation.
    assert found.p10 == pytest.approx(2.2)
    assert found.p90 == pytest.approx(3.8)
    assert found.min_ratio == 2.0
    assert found.cpu_ratio == 3.0
    assert (found.ours_ms, found.peer_ms) == (10_000.0, 30_000.0)
    assert found.rounds == 3


def test_spread_makes_a_measurement_noisy():
    steady = compare(samples(1, 1, 1), samples(10, 11, 12), threads=1)
    assert not steady.noisy
    assert compare(samples(1, 1, 1), samples(10, 15, 20), threads=1).noisy


@pytest.mark.parametrize("who", ["ours", "peer"])
def test_waiting_for_the_processor_makes_a_measurement_noisy(who):
    waited, not_waited = samples(1.2, 1.2, cpu=1.0), samples(1.2, 1.2, cpu=1.15)
    pair = {"ours": (waited, not_waited), "peer": (not_waited, waited)}[who]
    assert compare(*pair, threads=1).noisy
    assert compare(*pair, threads=2).noisy
    assert not compare(not_waited, not_waited, threads=2).noisy


def test_unknown_processor_time_is_not_judged():
    found = compare(samples(1, 1, cpu=0), samples(3, 3, cpu=0), threads=1)
    assert found.cpu_ratio == 0
    assert not found.noisy


@pytest.mark.parametrize(
    ("ratio", "p90", "noisy", "target", "expected"),
    [
        (5, 6, False, None, ""),
        (5, 6, False, 5, "pass"),
        (5, 6, True, 4, "pass"),
        (5, 6, False, 5.5, "close"),
        (5, 6, False, 6.5, "fail"),
        (5, 6, True, 6.5, "noisy"),
        (5, 6, True, 5.5, "noisy"),
    ],
)
def test_verdict(ratio, p90, noisy, target, expected):
    assert verdict(ratio=ratio, p90=p90, noisy=noisy, target=target) == expected


def test_target_of_two_threads_is_three_quarters_but_at_least_1():
    target = Target(cpu=12, cuda=7)
    assert target.at("cpu", 1) == 12
    assert target.at("cpu", 2) == 9
    assert target.at("cuda", 1) == 7
    assert Target(cpu=1).at("cpu", 2) == 1
    assert Target(cpu=1.2).at("cpu", 2) == 1
    assert Target().at("cpu", 1) is None


def test_target_of_an_instruction_set():
    target = Target(cpu=12, avx2=8, cuda=7)
    assert target.at("cpu", 1, "avx512") == 12
    assert target.at("cpu", 1, "avx2") == 8
    assert target.at("cpu", 2, "avx2") == 6
    assert target.at("cuda", 1, "avx2") == 7
    assert Target(cpu=12).at("cpu", 1, "avx2") == 12


@pytest.mark.parametrize(
    ("used", "malloc", "expected"),
    [("avx512", "warm", 12), ("avx2", "warm", 8), ("avx512", "default", 8), ("avx2", "default", 8)],
)
def test_target_of_a_row(monkeypatch, used, malloc, expected):
    monkeypatch.setattr(worker.machine, "used_instructions", lambda: used)
    case = SimpleNamespace(targets={"them": Target(cpu=12, avx2=8)}, malloc=("warm", "default"))
    row = worker.Row(id="X", size="3", peer="them", threads=1, malloc=malloc)
    comparison = compare(samples(1, 1), samples(10, 10), threads=1)
    worker.add_comparison(row, comparison, case, "cpu")
    assert row.target == expected
    assert row.verdict == ("pass" if expected == 8 else "fail")


ROW = {
    "id": "X", "size": "3", "peer": "them", "threads": 1, "error": "", "verdict": "pass",
    "comparison": {"ratio": 2.0}, "target": 3.0, "peak_mb": 1.0, "peak_limit_mb": 2.0,
    "metrics": {"share": 1.0}, "limits": {"share": 1.5},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"verdict": "noisy"}, None),
        ({"verdict": "close"}, None),
        ({"verdict": "fail"}, "X 3 against them: 2 times as fast, the target is 3"),
        ({"error": "it is wrong"}, "X 3 against them: it is wrong"),
        ({"peak_mb": 2.1}, "X 3: 2.1 MiB at the peak, the limit is 2"),
        ({"peak_mb": None}, None),
        ({"metrics": {"share": 1.6}, "threads": 2}, "X 3, 2 threads: share is 1.6"),
    ],
)
def test_what_check_fails_on(change, words):
    found = failures({**ROW, **change})
    if words is None:
        assert found == []
    else:
        assert len(found) == 1
        assert found[0].startswith(words)
