"""How one case is run: verification, missing peers, measurement, peak memory."""

import json
from dataclasses import asdict

import pytest
import torch

from benchmarks import cases, memory, roofline, timing, worker
from benchmarks.case import all_cases
from benchmarks.comparison import Sample, failures


def test_measures_a_case(toy_case, toy_job):
    (row,) = worker.run_case(toy_case(peak_mb=5.0, reads=32, writes=32), toy_job)
    assert (row.id, row.size, row.peer, row.threads) == ("X", "8", "adding", 1)
    assert row.error == row.missing == ""
    assert row.ours_ms > 0 and row.peer_ms > 0
    assert row.target == 1e-3 and row.verdict in ("pass", "noisy")
    assert row.comparison["rounds"] == 2
    # 64 bytes at 1e9 per second are 64 ns.
    assert row.roofline == pytest.approx(64e-9 / (row.ours_ms * 1e-3))
    assert (row.operators, row.peer_operators) == (1, 1)
    assert row.peak_limit_mb == 5.0


def test_a_wrong_result_fails_the_case_and_is_not_timed(toy_case, toy_job, monkeypatch):
    monkeypatch.setattr(worker, "interleave", lambda *a, **k: pytest.fail("it was timed"))
    peers = {"right": lambda x: lambda: x + x, "wrong": lambda x: lambda: x + 1}
    case = toy_case(peers=peers, targets={})
    (row,) = worker.run_case(case, toy_job)
    assert row.peer == "wrong"
    assert row.verdict == "fail"
    assert "our result differs from that of wrong" in row.error
    assert len(failures(vars(row))) == 1


def test_a_peer_that_is_not_installed_has_its_own_row(toy_case, toy_job):
    def absent(x):
        import a_package_that_nobody_has  # noqa: F401

    case = toy_case(peers={**toy_case().peers, "absent": absent})
    measured, missing = worker.run_case(case, toy_job)
    assert measured.peer == "adding" and measured.comparison
    assert missing.peer == "absent" and missing.comparison is None
    assert "a_package_that_nobody_has" in missing.missing
    assert failures(vars(missing)) == []


def test_a_case_that_needs_a_missing_package_is_no_error(toy_case, toy_job):
    def absent(device, seed):
        import a_package_that_nobody_has  # noqa: F401

    (row,) = worker.run_case(toy_case(make=absent), toy_job)
    assert (row.peer, row.error) == ("adding", "")
    assert "not installed" in row.missing and "a_package_that_nobody_has" in row.missing

    def broken(device, seed):
        import benchmarks.no_such_module  # noqa: F401

    with pytest.raises(ModuleNotFoundError):
        worker.run_case(toy_case(make=broken), toy_job)


def test_a_case_without_peers_has_a_row(toy_case, toy_job):
    (row,) = worker.run_case(toy_case(peers={}, targets={}), toy_job)
    assert row.peer == "" and row.ours_ms > 0 and row.verdict == ""


def test_metrics_get_both_results(toy_case, toy_job):
    def total(ours, peers):
        return {"sum": float(ours.sum() + peers["adding"].sum())}

    case = toy_case(metrics=total, limits={"sum": 100.0})
    (row,) = worker.run_case(case, toy_job)
    # 2 * (3 + ... + 10) = 104, twice
    assert row.metrics == {"sum": 208.0}
    assert failures(vars(row)) == ["X 8: sum is 208, the limit is 100"]


def test_an_exception_only_fails_its_own_case(toy_case, toy_job, tmp_path, monkeypatch):
    def broken(x):
        raise IndexError("too far\nand more")

    cases = [toy_case(ours=broken), toy_case(size="9")]
    monkeypatch.setattr(worker, "all_cases", lambda: cases)
    toy_job.keys = [case.key for case in cases]
    request, answer = tmp_path / "job.json", tmp_path / "result.json"
    request.write_text(json.dumps(asdict(toy_job)))
    assert worker.main(str(request), str(answer)) == 0
    lines = [json.loads(line) for line in answer.read_text().splitlines()]
    assert [line["key"] for line in lines] == toy_job.keys
    (bad,), (good,) = (line["rows"] for line in lines)
    assert bad["verdict"] == "fail"
    assert bad["error"].startswith("IndexError: too far (test_worker.py, line")
    assert good["error"] == "" and good["size"] == "9"


def test_operators_of_compiled_code_are_not_counted():
    def refuses():
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise RuntimeError("dispatch mode present")

    assert worker.count_operators(refuses) is None
    assert worker.count_operators(lambda: torch.ones(2) + torch.ones(2)) == 3


def test_threads_are_set_and_capped(toy_case, toy_job):
    seen = []

    def watching(x):
        def call():
            seen.append(torch.get_num_threads())
            return x * 2

        return call

    toy_job.threads = [1, 2]
    before = torch.get_num_threads()
    try:
        rows = worker.run_case(toy_case(ours=watching), toy_job)
        assert [row.threads for row in rows] == [1, 2]
        assert set(seen) == {1, 2}
        rows = worker.run_case(toy_case(ours=watching, max_threads=1), toy_job)
        assert [row.threads for row in rows] == [1]
    finally:
        torch.set_num_threads(before)


def test_a_noisy_measurement_is_repeated_once(toy_case, toy_job, monkeypatch):
    rounds = iter([(10.0, 20.0), (30.0, 33.0)])  # the first spreads by a factor of nearly 2

    def fake(calls, clock, **options):
        peer = next(rounds)
        return {worker.OURS: [Sample(1.0, 1.0)] * 2, "adding": [Sample(x, x) for x in peer]}

    monkeypatch.setattr(worker, "interleave", fake)
    (row,) = worker.run_case(toy_case(), toy_job)
    assert row.comparison["ratio"] == 31.5
    assert not row.comparison["noisy"]


class CountingClock:
    """Each call takes the number of seconds that it is mapped to."""

    def __init__(self, seconds):
        self.seconds, self.timed = seconds, []

    def time(self, call, repeats):
        name = call()
        self.timed.append((name, repeats))
        return Sample(self.seconds[name], self.seconds[name])


def test_every_round_times_each_call_once_and_repeats_short_ones():
    clock = CountingClock({"short": 5e-4, "long": 1.0})
    calls = {name: (lambda name=name: name) for name in clock.seconds}
    samples = timing.interleave(calls, clock, budget=1e9, min_rounds=1, seed=0)
    assert {len(s) for s in samples.values()} == {timing.MAX_ROUNDS}
    rounds = clock.timed[2:]  # after one call each to find the number of repeats
    assert {repeats for name, repeats in rounds if name == "short"} == {4}  # 2 ms
    assert {repeats for name, repeats in rounds if name == "long"} == {1}
    pairs = [{rounds[i][0], rounds[i + 1][0]} for i in range(0, len(rounds), 2)]
    assert all(pair == {"short", "long"} for pair in pairs)
    assert len({rounds[i][0] for i in range(0, len(rounds), 2)}) == 2  # not always the same first


def test_stops_when_the_budget_is_spent_but_not_before_min_rounds():
    clock = CountingClock({"a": 1.0})
    samples = timing.interleave({"a": lambda: "a"}, clock, budget=0.0, min_rounds=7, seed=0)
    assert len(samples["a"]) == 7


def test_peak_memory_includes_freed_memory():
    cpu = torch.device("cpu")

    def call():
        torch.ones(16 * 2**20).mul_(2)  # 64 MiB that are freed again
        return torch.ones(2**20)

    peak = memory.peak_bytes(call, cpu)
    if peak is None:
        pytest.skip("this system does not report peak memory")
    assert 63 * 2**20 < peak < 72 * 2**20
    assert memory.peak_bytes(lambda: None, cpu) < 2**20


def test_share_of_the_bandwidth():
    rates = {"read": 10e9, "fill": 5e9}
    # 1 GB to read and 1 GB to write take .1 + .2 s.
    assert roofline.share(10**9, 10**9, 0.6, rates) == pytest.approx(0.5)
    assert roofline.share(0, 0, 0.6, rates) is None


def test_a_target_needs_its_peer(toy_case):
    with pytest.raises(ValueError, match="targets for peers that it does not have: {'adding'}"):
        toy_case(peers={})


def test_every_module_of_cases_is_found():
    found = all_cases()
    assert {case.id for case in found} >= {"P1", "P2", "M1", "M2", "M4", "R1", "L1", "L2", "L3"}
    assert len({case.key for case in found}) == len(found)
    assert cases.__doc__
