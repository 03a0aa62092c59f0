"""Python commands in processes of their own, without the seconds that importing Detectron2 takes.

A server imports torch, Detectron2 and what these need, once, and forks for each command. The
fork has its own arguments, directory, environment, files, session, signals and exit status, and
imports this package itself. Not for tests of what only a new interpreter shows: what is printed
while those packages are imported, variables that they read then (``OMP_NUM_THREADS``).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import types
import warnings
from multiprocessing import util
from pathlib import Path

import numpy

# None of this package.
IMPORTED = (
    "torch", "torch.distributed", "torch.utils.tensorboard", "torchvision", "matplotlib.pyplot",
    "pycocotools.cocoeval", "detectron2.checkpoint", "detectron2.data", "detectron2.engine",
    "detectron2.evaluation", "detectron2.model_zoo", "detectron2.modeling",
)  # fmt: skip
LARGEST = 200_000  # bytes of a message
SERVER = "import sys; from tests.warm_python import serve; serve(int(sys.argv[1]))"
REPOSITORY = Path(__file__).resolve().parents[1]


class Process:
    """A started command, with the part of ``subprocess.Popen`` that tests use."""

    def __init__(self, arguments: list[str], status: int) -> None:
        self.args = arguments
        self.returncode: int | None = None
        self._status = os.fdopen(status)
        line = self._status.readline()
        if not line:
            raise RuntimeError("the server of warm_python has ended")
        self.pid = int(line)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class WarmPython:
    """The server; it starts with the first command and ends, with all it started, in ``close``."""

    def __init__(self) -> None:
        self._started: list[Process] = []
        self._server: subprocess.Popen | None = None

    def start(
        self, command, *, cwd=None, env=None, stdout=None, stderr=None, spawns: tuple[int, ...] = ()
    ) -> Process:
        """Start a command in a session of its own, as a terminal does.

        Args:
            command: Python, ``-W`` and ``-u`` where wanted, then a script, ``-m module`` or ``-c
                code``, and its arguments.
            stdout, stderr: a file, a descriptor, ``DEVNULL``, or by default that of this process;
                ``STDOUT`` for stderr.
            spawns: how many processes it may start by the method "spawn" of multiprocessing, each
                of these again, and so on, that are forked as well. What it starts beyond them is a
                new interpreter.
        """
        found = shutil.which(command[0]) or ""
        if os.path.abspath(found) != os.path.abspath(sys.executable):
            raise ValueError(f"no command of this Python: {command}")
        if self._server is None:
            self._start_server()
        request = {
            "arguments": list(map(str, command[1:])),
            "cwd": str(cwd or os.getcwd()),
            "environment": dict(os.environ if env is None else env),
            "spawns": spawns,
        }
        read, write = os.pipe()
        with open(os.devnull, "r+") as null:
            out = _descriptor(stdout, null, default=1)
            err = out if stderr == subprocess.STDOUT else _descriptor(stderr, null, default=2)
            files = null.fileno(), out, err
            socket.send_fds(self._socket, [json.dumps(request).encode()], [*files, write])
        os.close(write)
        process = Process(command, read)
        self._started.append(process)
        return process

    def run(self, command, *, check=False, timeout=None, capture_output=True, text=True, **options):
        """``subprocess.run``: the completed process, with what it printed as text."""
        assert capture_output and text
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = self.start(command, stdout=out, stderr=err, **options)
            try:
                process.wait(timeout)
            finally:
                _kill(process)
            out.seek(0), err.seek(0)
            done = subprocess.CompletedProcess(
                command, process.returncode, out.read().decode(), err.read().decode()
            )
        if check and done.returncode:
            raise AssertionError(f"{done.args}: status {done.returncode}\n{done.stderr[-3000:]}")
        return done

    def _start_server(self) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * LARGEST)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER, str(other.fileno())],
            cwd=REPOSITORY, env={**environment, "OMP_NUM_THREADS": "1"},
            pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        other.close()

    def close(self) -> None:
        for process in self._started:
            _kill(process)
        if self._server is not None:
            self._socket.shutdown(socket.SHUT_RDWR)  # children of this process may still have it
            self._socket.close()
            self._server.wait(timeout=60)


def _descriptor(file, null, *, default: int) -> int:
    file = {None: default, subprocess.DEVNULL: null}.get(file, file)
    return file if isinstance(file, int) else file.fileno()


def _kill(process: Process) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def serve(number: int) -> None:
    """Fork for each request of a socket, until it closes. Each fork returns, to end as usual."""
    sys.path.remove("")
    for name in IMPORTED:
        importlib.import_module(name)
    assert not any(name.startswith("resobj_d2") for name in sys.modules)
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")
    gc.collect()
    gc.freeze()  # else the collector would write to, and so copy, every page in every fork
    request = _next_request(socket.socket(fileno=number))
    if request is not None:
        _become(**request)


def _next_request(connection: socket.socket) -> dict | None:
    """What a fork is to do. None in the server, which returns at its end."""
    wake, woken = os.pipe()
    os.set_blocking(woken, False), os.set_blocking(wake, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running: dict[int, int] = {}  # pid: where its status is written
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if wake in ready:
                os.read(wake, 1000)
                _tell_who_ended(running)
            if connection not in ready:
                continue
            message, descriptors, _, _ = socket.recv_fds(connection, LARGEST, 4)
            if not message:
                return None
            *files, status = descriptors
            pid = os.fork()
            if pid:
                running[pid] = status
                os.write(status, f"{pid}\n".encode())
                for descriptor in files:
                    os.close(descriptor)
                continue
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for target, descriptor in enumerate(files):
                os.dup2(descriptor, target)
            for descriptor in (*files, status, *running.values(), wake, woken):
                os.close(descriptor)
            connection.close()
            return json.loads(message)


def _tell_who_ended(running: dict[int, int]) -> None:
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with contextlib.suppress(BrokenPipeError):
                os.write(running[pid], f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os.close(running.pop(pid))


def _become(
    *, arguments: list[str], cwd: str, environment: dict[str, str], spawns: list[int]
) -> None:
    os.setsid()
    _start(arguments, cwd, environment, spawns)


def _start(arguments, cwd, environment, spawns) -> None:
    numpy.random.seed()
    if spawns:
        waiting = _Waiting()
        for _ in range(spawns[0]):
            if waiting.fork(spawns[1:]):
                return
        util.spawnv_passfds = waiting.spawn
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _execute(arguments, cwd, environment)


class _Waiting:
    """Processes forked before a command begins, for ``multiprocessing.util.spawnv_passfds``."""

    original = staticmethod(util.spawnv_passfds)

    def __init__(self) -> None:
        self.sockets: list[tuple[socket.socket, int]] = []

    def fork(self, spawns: list[int]) -> bool:
        """Whether this is the new process, at its end; the old one goes on at once."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * LARGEST)
        pid = os.fork()
        if pid:
            theirs.close()
            self.sockets.append((mine, pid))
            return False
        for other in (mine, *(other for other, _ in self.sockets)):
            other.close()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        message, descriptors, _, _ = socket.recv_fds(theirs, LARGEST, 16)
        theirs.close()
        if message:
            request = json.loads(message)
            _renumber(descriptors, request.pop("descriptors"))
            _start(**request, spawns=spawns)
        return True

    def spawn(self, path, arguments, descriptors):
        if "--multiprocessing-fork" not in arguments or not self.sockets:
            return self.original(path, arguments, descriptors)
        connection, pid = self.sockets.pop()
        request = {
            "arguments": arguments[arguments.index("-c") :],
            "cwd": os.getcwd(),
            "environment": dict(os.environ),
            "descriptors": list(descriptors),
        }
        sys.stdout.flush()
        socket.send_fds(connection, [json.dumps(request).encode()], descriptors)
        connection.close()
        return pid


def _renumber(have: list[int], want: list[int]) -> None:
    """Give open files the numbers that they have in the process that sent them."""
    above = max((*have, *want)) + 1
    for i, descriptor in enumerate(have):
        os.dup2(descriptor, above + i)
        os.close(descriptor)
    for i, descriptor in enumerate(want):
        os.dup2(above + i, descriptor)
        os.close(above + i)


def _execute(arguments: list[str], cwd: str, environment: dict[str, str]) -> None:
    """As the interpreter does with its command line."""
    for name in [x for x in sys.modules if x.partition(".")[0] == "tests"]:
        del sys.modules[name]  # the command may have tests of its own
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [x for x in environment.get("PYTHONPATH", "").split(os.pathsep) if x]
    kind, *rest = arguments
    while kind in ("-u", "-W"):
        if kind == "-W":
            warnings.simplefilter(rest.pop(0))
        else:
            sys.stdout.reconfigure(line_buffering=True)
        kind, *rest = rest
    if kind == "-m":
        sys.argv = rest
        sys.path.insert(0, cwd)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = [kind, *rest]
        sys.path.insert(0, os.path.dirname(os.path.abspath(kind)))
        runpy.run_path(kind, run_name="__main__")
