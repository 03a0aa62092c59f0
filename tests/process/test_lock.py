"""One run at a time in a folder, with processes that are killed."""

import contextlib
import fcntl
import logging
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from resobj_d2.process import FolderInUse, hold_folder, release_folder

HOLD = """
import os, sys, time
from resobj_d2.process import hold_folder
hold_folder(sys.argv[1])
if "fork" in sys.argv and not os.fork():  # a data loader's worker, which outlives its parent
    os.close(1)
    time.sleep(60)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A function that starts a process which holds the folder."""
    started = []

    def start(*words):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), *words],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.fixture(autouse=True)
def released(tmp_path):
    yield
    release_folder(tmp_path)


def test_second_run_is_told_who_holds_the_folder(holder, tmp_path):
    process = holder()
    with pytest.raises(FolderInUse) as error:
        hold_folder(tmp_path)
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path))} is in use by another run \(host {socket.gethostname()}, "
        rf"process {process.pid}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\): stop that one, or set "
        "another OUTPUT_DIR",
        str(error.value),
    )


@pytest.mark.parametrize("words", [(), ("fork",)])
def test_lock_of_a_killed_run_is_taken_over(holder, tmp_path, words, caplog):
    process = holder(*words)
    process.kill()
    process.wait()
    with caplog.at_level("WARNING"):
        hold_folder(tmp_path)
    assert f"its run (host {socket.gethostname()}, process {process.pid}" in caplog.text
    assert "unless" not in caplog.text
    assert f"process {os.getpid()}, since" in (tmp_path / "run.lock").read_text()


def test_left_by_another_host_it_is_taken_over_with_a_doubt(tmp_path, caplog):
    (tmp_path / "run.lock").write_text("host elsewhere, process 1, since 2020-01-01 00:00:00\n")
    hold_folder(tmp_path)
    assert "process 1, since 2020-01-01 00:00:00) has ended without releasing it" in caplog.text
    assert caplog.text.rstrip().endswith("unless that host still runs it")


def test_released_it_leaves_nothing_and_can_be_held_again(holder, tmp_path, caplog):
    for _ in range(2):
        hold_folder(tmp_path)
        hold_folder(tmp_path)
        release_folder(tmp_path)
        assert list(tmp_path.iterdir()) == []
    holder()
    assert caplog.text == ""


def test_a_process_that_ends_well_leaves_nothing(tmp_path):
    code = HOLD.split("if ")[0]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog):
    def refuse(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with caplog.at_level(logging.WARNING):
        hold_folder(tmp_path)
    assert "other runs are not kept out: [Errno 37] No locks available" in caplog.text
