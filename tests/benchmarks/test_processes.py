"""Worker processes: results one by one, and what happens after a crash, a hang or a lost GPU."""

import subprocess
import sys
import time
from dataclasses import replace

import pytest

from benchmarks import memory, processes, worker

# A worker that does to each case what its name says.
WORKER = """
import json, os, sys, time
job = json.load(open(sys.argv[1]))
results = open(sys.argv[2], "a")
for key in job["keys"]:
    if key == "crash":
        print("why it crashed", file=sys.stderr)
        sys.exit(5)
    if key == "sleep":
        time.sleep(60)
    results.write(json.dumps({"key": key, "rows": [os.getpid()]}) + "\\n")
    results.flush()
    if key == "lose":
        os._exit(3)
    if key == "stop":
        break
"""


@pytest.fixture
def run(monkeypatch, toy_job, tmp_path):
    """A function: keys to (results, failures, keys for which no time was left)."""
    package = tmp_path / "benchmarks"
    package.mkdir()
    (package / "__init__.py").touch()  # else an installed checkout's comes first
    (package / "worker.py").write_text(WORKER)
    monkeypatch.setattr(processes.machine, "REPOSITORY", tmp_path)
    monkeypatch.setattr(processes, "POLL", 0.05)
    monkeypatch.setattr(processes, "MARGIN", 0.0)
    monkeypatch.setattr(memory, "MALLOC", {"warm": {}})

    def run_keys(*keys, **changes):
        results, failures = [], {}
        job = replace(toy_job, keys=list(keys), **changes)
        left = processes.run_job(job, results.append, failures.__setitem__)
        return results, failures, left

    return run_keys


def test_one_process_measures_all_cases(run):
    results, failures, left = run("a", "b", "c")
    assert [result["key"] for result in results] == ["a", "b", "c"]
    assert len({result["rows"][0] for result in results}) == 1
    assert (failures, left) == ({}, [])


def test_after_a_crash_a_new_process_goes_on_behind_the_case(run):
    results, failures, left = run("a", "crash", "b")
    assert [result["key"] for result in results] == ["a", "b"]
    assert failures == {"crash": "exit status 5: why it crashed"} and left == []


def test_after_a_lost_gpu_nothing_is_lost(run):
    results, failures, left = run("a", "lose", "b")
    assert [result["key"] for result in results] == ["a", "lose", "b"]
    pids = [result["rows"][0] for result in results]
    assert pids[0] == pids[1] != pids[2]
    assert (failures, left) == ({}, [])


def test_a_silent_process_is_killed_and_its_case_fails(run):
    start = time.monotonic()
    results, failures, left = run("a", "sleep", "b", case_seconds=1.0)
    assert time.monotonic() - start < 30
    assert [result["key"] for result in results] == ["a", "b"]
    assert failures == {"sleep": "no answer within 1 s"} and left == []


def test_a_broken_machine_is_given_up_after_three_processes(run, monkeypatch):
    asked = []
    monkeypatch.setattr(
        processes, "ask_worker", lambda job, keep: (asked.append(job.keys), (1, "no GPU"))[1]
    )
    results, failures, left = run("a", "b", "c", "d", "e")
    assert asked == [list("abcde"), list("bcde"), list("cde")]
    assert failures == dict.fromkeys("abcde", "no GPU") and results == left == []


def test_cases_without_time_are_left(run):
    assert run("a", until=time.time()) == ([], {}, ["a"])
    results, failures, left = run("a", "stop", "b", "c")
    assert [result["key"] for result in results] == ["a", "stop"]
    assert (failures, left) == ({}, ["b", "c"])


def test_a_worker_begins_no_case_without_time(toy_job, toy_case, monkeypatch):
    monkeypatch.setattr(worker, "all_cases", lambda: [toy_case()])
    results = []
    job = replace(toy_job, keys=["X 8"], until=time.time() + worker.LEAST_SECONDS - 1)
    assert worker.work(job, results.append) == 0 and results == []
    assert worker.work(replace(job, until=time.time() + 100), results.append) == 0
    assert [result["key"] for result in results] == ["X 8"]


def test_a_worker_ends_after_the_case_that_lost_the_gpu(toy_job, toy_case, monkeypatch):
    monkeypatch.setattr(worker, "all_cases", lambda: [toy_case(), toy_case(size="9")])
    monkeypatch.setattr(worker, "context_is_lost", lambda device: True)
    results = []
    job = replace(toy_job, keys=["X 8", "X 9"])
    assert worker.work(job, results.append) == worker.CONTEXT_LOST
    assert [result["key"] for result in results] == ["X 8"]


HANGS = """
import time
from benchmarks import worker
from benchmarks.case import Case

case = Case("X", "8", make=lambda *_: time.sleep(60), ours=None, peers={}, verify=None)
worker.all_cases = lambda: [case]
job = worker.Job(["X 8"], "cpu", [1], "warm", 0.0, 0, {}, case_seconds=0.3)
worker.work(job, print)
"""


@pytest.mark.slow
def test_a_case_that_takes_too_long_ends_the_worker_and_says_where_it_was(repository):
    command = [sys.executable, "-c", HANGS]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1 and done.stdout == ""
    assert "Timeout" in done.stderr and "run_case" in done.stderr
