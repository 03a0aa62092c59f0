"""Processes: so many at a time, their failures in a line, and signals that reach them once."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from resobj_d2.process import hold_folder
from resobj_d2.study.pool import Job, run_jobs


def job(folder, code, name="a"):
    command = [sys.executable, "-S", "-c", code]
    return Job(name=name, folder=folder / name, command=command, environment={"NAME": name})


def run(jobs, at_once=1, **options):
    ends = []
    signum = run_jobs(jobs, at_once=at_once, ended=ends.append, **options)
    return signum, {one.job.name: one for one in ends}


def test_jobs_get_folders_variables_and_slots(tmp_path):
    code = "import os; print(os.environ['NAME'], os.environ['SLOT'])"
    jobs = [job(tmp_path, code, name) for name in "abc"]
    signum, ends = run(jobs, at_once=2, slot_environment=lambda slot: {"SLOT": str(slot)})
    assert signum == 0 and list(sorted(ends)) == ["a", "b", "c"]
    assert not any(one.error or one.stopped for one in ends.values())
    texts = [(tmp_path / name / "console.txt").read_text().split() for name in "abc"]
    assert texts[:2] == [["a", "0"], ["b", "1"]] and texts[2][0] == "c"


def test_no_more_run_at_once_than_asked(tmp_path):
    seen = []
    jobs = [job(tmp_path, "import time; time.sleep(0.3)", name) for name in "abcd"]
    run(jobs, at_once=2, look=lambda running: seen.append(len(running)))
    assert max(seen) <= 2


@pytest.mark.parametrize(
    "code, error",
    [
        ("print('x'); import sys; sys.exit('error: the loss\\tis not finite')",
         "the loss is not finite"),
        ("print('error: first'); print('RuntimeError: last'); raise SystemExit(1)", "first"),
        ("raise SystemExit(3)", "exit status 3"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL, perhaps for want of memory"),
        ("raise SystemExit(130)", "asked to stop from outside the study"),
    ],
)  # fmt: skip
def test_a_failure_is_one_line(tmp_path, code, error):
    _, ends = run([job(tmp_path, code)])
    assert ends["a"].error.endswith(error) and "\n" not in ends["a"].error
    assert not ends["a"].stopped


def test_a_folder_that_another_process_holds_waits_its_turn(tmp_path):
    (tmp_path / "a").mkdir()
    held = subprocess.Popen(
        [sys.executable, "-c",
         "import sys; from resobj_d2.process import hold_folder; hold_folder(sys.argv[1]);"
         "print('held', flush=True); sys.stdin.read()", str(tmp_path / "a")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert held.stdout.readline() == b"held\n"
    said, order = [], []

    def say(text):
        said.append(text)
        held.stdin.close()

    ends = []

    def ended(end):
        order.append(end.job.name)
        ends.append(end)

    jobs = [job(tmp_path, "pass", name) for name in "ab"]
    assert run_jobs(jobs, at_once=1, ended=ended, say=say) == 0
    held.wait()
    assert order == ["b", "a"] and len(said) == 1 and "still writes there" in said[0]
    hold_folder(tmp_path / "a")  # and it was let go


# Counts the signals that it gets, and says so.
COUNTING = """
import os, signal, sys, time
def count(signum, frame):
    with open("{folder}/signals", "a") as file:
        file.write(f"{{signum}}\\n")
    sys.exit(130)
signal.signal(signal.SIGINT, count)
signal.signal(signal.SIGTERM, count)
open("{folder}/ready", "w").close()
time.sleep(60)
"""
PARENT = """
import json, sys
from pathlib import Path
from resobj_d2.study.pool import Job, run_jobs
folder = Path(sys.argv[1])
jobs = [
    Job(name=n, folder=folder / n, environment={},
        command=[sys.executable, "-S", "-c", sys.argv[2].replace("{folder}", str(folder / n))])
    for n in ("a", "b")
]
ends = []
signum = run_jobs(jobs, at_once=1, ended=ends.append)
print(json.dumps([signum, [[e.job.name, e.stopped] for e in ends]]))
"""


@pytest.fixture
def parent(tmp_path):
    """A study's process whose first job has begun."""
    code = COUNTING.replace("{{", "{").replace("}}", "}")
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(tmp_path / "a" / "ready")
    yield process
    process.kill()
    process.communicate()


def wait_for(path):
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not appear"
        time.sleep(0.05)


def test_ctrl_c_reaches_a_job_once_and_starts_no_other(tmp_path, parent):
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal sends it to the whole group
    output, errors = parent.communicate(timeout=60)
    assert json.loads(output) == [signal.SIGINT, [["a", True]]]
    assert "Stopping" in errors
    assert (tmp_path / "a" / "signals").read_text() == f"{signal.SIGINT:d}\n"
    assert not (tmp_path / "b").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the signal at a parent's death is Linux's")
def test_a_job_is_asked_to_stop_where_the_study_is_killed(tmp_path, parent):
    parent.kill()
    wait_for(tmp_path / "a" / "signals")
    assert (tmp_path / "a" / "signals").read_text() == f"{signal.SIGTERM:d}\n"
