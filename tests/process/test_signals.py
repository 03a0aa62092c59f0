import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from resobj_d2.process import StopRequest


def start(code):
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


LOOP = """
import time
from resobj_d2.process import StopRequest
request = StopRequest(message="stopping", launched={launched})
with request.listening():
    print("ready")
    while not request.signum:
        time.sleep(0.01)
    {then}
print("stopped by", request.signum)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_a_request(signum):
    process = start(LOOP.format(launched=False, then="pass"))
    process.send_signal(signum)
    output, _ = process.communicate(timeout=20)
    assert output == f"\nstopping\nstopped by {int(signum)}\n"
    assert process.returncode == 0


@pytest.mark.parametrize("launched", [False, True])
def test_second_signal_ends_the_process_at_once(launched):
    process = start(LOOP.format(launched=launched, then="time.sleep(60)"))
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    # A launcher's child gets each Ctrl-C twice, and soon after each other.
    process.send_signal(signal.SIGINT)
    if launched:
        time.sleep(0.3)
        assert process.poll() is None
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert output == "\nstopping\n\nStopped at once.\n"
    assert process.returncode == 130


def test_handlers_are_put_back():
    mine = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest(message="").listening() as request:
            os.kill(os.getpid(), signal.SIGTERM)
            assert request.signum == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, mine)


def test_listening_in_another_thread_is_no_error():
    seen = []

    def run():
        with StopRequest(message="").listening() as request:
            seen.append(request.signum)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [0]


PARENT = """
import multiprocessing, os, signal, sys, time
from resobj_d2.process import StopRequest, forward_to_children

def child(stubborn):
    with StopRequest(message="", launched=True).listening() as request:
        print("ready", flush=True)
        while stubborn or not request.signum:
            time.sleep(0.01)
    print("child stopped by", request.signum, flush=True)
    sys.exit(128 + request.signum)

def main():
    process = multiprocessing.get_context("fork").Process(target=child, args=({stubborn},))
    with forward_to_children():
        process.start()
        process.join()
        error = RuntimeError("a child has ended")
        error.exit_code = process.exitcode
        raise error

main()
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to_all", [False, True], ids=["to the parent", "to all, as a terminal"])
def test_launcher_waits_for_what_its_children_do(signum, to_all):
    process = start(PARENT.format(stubborn=False))
    os.killpg(process.pid, signum) if to_all else process.send_signal(signum)
    output, _ = process.communicate(timeout=20)
    assert output == f"child stopped by {int(signum)}\n"
    assert process.returncode == 128 + signum


def test_launcher_kills_a_child_that_does_not_stop():
    process = start(PARENT.format(stubborn=True))
    process.send_signal(signal.SIGINT)
    time.sleep(1.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert output == "" and process.returncode == 130


def test_launcher_shows_what_failed_in_a_child():
    code = PARENT.format(stubborn=False).replace("error.exit_code = process.exitcode", "")
    process = start(code)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert "RuntimeError: a child has ended" in output
    assert process.returncode == 1


WORKER = """
import time
from resobj_d2.process.signals import outlive_signals
outlive_signals()
print("ready")
time.sleep(1)
print("alive")
time.sleep(60)
"""


def test_data_loader_worker_outlives_the_signals_of_others():
    process = start(WORKER)
    for name in ("INT", "TERM"):  # as a terminal and a batch system do
        subprocess.run(["bash", "-c", f"kill -{name} {process.pid}"], check=True)
    assert process.stdout.readline() == "alive\n"
    process.send_signal(signal.SIGTERM)  # of its parent
    assert process.wait(timeout=10) == 0
