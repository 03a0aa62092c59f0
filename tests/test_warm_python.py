"""A command of the server's is what a new interpreter makes of it."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

# What a command can tell of itself. The server's process has imported more.
SELF = """
import json, os, signal, sys
print(json.dumps({
    "argv": sys.argv, "name": __name__, "main": sys.modules["__main__"].__dict__ is globals(),
    "path": [x for x in sys.path if "site-packages" not in x], "cwd": os.getcwd(),
    "environment": {k: v for k, v in os.environ.items() if k != "LC_CTYPE"},
    "leader": os.getsid(0) == os.getpid(), "files": sorted(os.listdir("/proc/self/fd")),
    "signals": [str(signal.getsignal(x)) for x in (2, 15, 17)],
    "ours": sorted({"resobj_d2", "tests"} & set(sys.modules)),
    "terminal": [x.isatty() for x in (sys.stdin, sys.stdout, sys.stderr)],
}))
print("to stderr", file=sys.stderr)
import atexit
atexit.register(print, "the last words")
sys.exit(7)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [["-c", SELF], ["-m", "told.itself"], ["told/itself.py"]])
def test_it_finds_what_a_new_interpreter_finds(how, warm_python, tmp_path):
    (tmp_path / "told").mkdir()
    (tmp_path / "told/itself.py").write_text(SELF)
    options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": "/nowhere", "MORE": "1 2"}}
    command = [sys.executable, *how, "a", "b c"]
    expected = subprocess.run(
        command, capture_output=True, text=True, start_new_session=True, stdin=subprocess.DEVNULL,
        **options,
    )  # fmt: skip
    found = warm_python.run(command, **options)
    lines = expected.stdout.splitlines(), found.stdout.splitlines()
    assert json.loads(lines[1][0]) == json.loads(lines[0][0])
    assert lines[1][1:] == lines[0][1:] == ["the last words"]
    assert found.stderr == expected.stderr == "to stderr\n"
    assert found.returncode == expected.returncode == 7


@pytest.mark.slow
def test_signals_and_exceptions_end_it(warm_python):
    ready = [sys.executable, "-u", "-c", "import time; print('ready'); time.sleep(100)"]
    with os.fdopen((pipe := os.pipe())[0]) as output:
        process = warm_python.start(ready, stdout=pipe[1], stderr=subprocess.STDOUT)
        os.close(pipe[1])
        assert output.readline() == "ready\n" and process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == -signal.SIGINT
        assert output.read().endswith("KeyboardInterrupt\n")
    process = warm_python.start(ready, stdout=subprocess.DEVNULL)
    process.kill()
    assert process.wait(timeout=30) == -signal.SIGKILL
    raised = warm_python.run([sys.executable, "-c", "raise KeyError('x')"])
    assert raised.returncode == 1 and raised.stderr.endswith("KeyError: 'x'\n")


SPAWNS = """
import multiprocessing, os, signal, sys
def work(number, queue):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    queue.put((number, os.getppid(), os.environ["SET"], "torch" in sys.modules, __name__))
    sys.exit(10 + number)
if __name__ == "__main__":
    os.environ["SET"] = "by the parent"
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    all_of_them = [context.Process(target=work, args=(i, queue)) for i in range(3)]
    for process in all_of_them:
        process.start()
    found = sorted(queue.get() for _ in range(2))
    assert found == [
        (0, os.getpid(), "by the parent", True, "__mp_main__"),
        (1, os.getpid(), "by the parent", False, "__mp_main__"),  # a new interpreter
    ], found
    for process in all_of_them:
        process.join()
    print([process.exitcode for process in all_of_them])
"""


@pytest.mark.slow
def test_processes_that_it_spawns_are_its_own(warm_python, tmp_path):
    (tmp_path / "spawns.py").write_text(textwrap.dedent(SPAWNS))
    # The last of those forked beforehand is the first to be taken.
    done = warm_python.run([sys.executable, tmp_path / "spawns.py"], spawns=(1,))
    assert (done.returncode, done.stdout) == (0, "[10, 11, -9]\n"), done.stderr
