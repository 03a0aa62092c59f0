"""Ctrl-C and SIGTERM as a request to stop, which a loop answers where it can do so safely."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator

__all__ = ["StopRequest", "exit_status", "forward_to_children", "outlive_signals"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A Ctrl-C reaches a process of a launcher twice: from the terminal and from its parent.
_SAME_REQUEST_SECONDS = 1.0


def exit_status(signum: int) -> int:
    """What shells report for a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + signum


class StopRequest:
    """Remembers the first SIGINT or SIGTERM; a second one ends the process at once.

    Outside the main thread, where Python allows no handlers, it remembers nothing.

    Args:
        message: printed at the first signal; "" for none.
        launched: whether a parent process passes signals on as well; the second of two within a
            second is then the same request.

    Attributes:
        signum: of the first signal, 0 before.
    """

    def __init__(self, *, message: str, launched: bool = False) -> None:
        self.message = message
        self.launched = launched
        self.signum = 0
        self._first = 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Take the signals inside the block; whoever took them before has them back afterwards.

        A launched process that was asked to stop ignores them from then on: it is about to end,
        and the second copy of the request may still come.
        """
        self.signum = 0
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {signum: signal.signal(signum, self._handle) for signum in _SIGNALS}
        try:
            yield self
        finally:
            ending = self.launched and self.signum
            _put_back({s: signal.SIG_IGN for s in before} if ending else before)

    def _handle(self, signum: int, frame: object) -> None:
        now = time.monotonic()
        if not self.signum:
            self.signum, self._first = signum, now
            _print(self.message)
        elif not self.launched or now - self._first > _SAME_REQUEST_SECONDS:
            _print("Stopped at once." if self.message else "")
            for child in multiprocessing.active_children():  # data loaders
                child.kill()
            os._exit(exit_status(signum))


def outlive_signals() -> None:
    """For a process that works for its parent: let the parent decide how a signal is answered.

    Ctrl-C is ignored, and so is SIGTERM of any process but the parent, where the system tells who
    sent it. Call it early, from the main thread: threads that run already are not covered.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait_for_the_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait_for_the_parent, daemon=True).start()


@contextlib.contextmanager
def forward_to_children() -> Iterator[None]:
    """For a process that waits for those it has started: they get its signals and it waits on.

    A second signal kills them.

    Raises:
        SystemExit: at the end of the block, after a signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[tuple[int, float]] = []

    def handle(signum: int, frame: object) -> None:
        now = time.monotonic()
        if received and now - received[0][1] < _SAME_REQUEST_SECONDS:
            return
        again = bool(received)
        received.append((signum, now))
        # It would warn of the processes that it ends because another has ended.
        logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
        for child in multiprocessing.active_children():
            with contextlib.suppress(ProcessLookupError, ValueError):
                child.kill() if again else os.kill(child.pid, signum)

    before = {signum: signal.signal(signum, handle) for signum in _SIGNALS}
    try:
        yield
    except Exception as error:
        # Torch's launcher complains of a process that has ended with another status than 0; what
        # went wrong inside one has no exit_code and is shown.
        code = getattr(error, "exit_code", None)
        stopped = [exit_status(signum) for signum in _SIGNALS]
        if code is None or not (received or code in stopped):
            raise
        if not received:  # a process alone got the signal
            raise SystemExit(code) from None
    finally:
        _put_back(before)
    if received:
        raise SystemExit(exit_status(received[0][0]))


def _put_back(handlers: dict) -> None:
    for signum, handler in handlers.items():
        # None: a handler that was not installed from Python.
        signal.signal(signum, signal.SIG_DFL if handler is None else handler)


def _print(message: str) -> None:
    """Not ``print``, which may be at work in the code that the signal interrupted."""
    if message:
        with contextlib.suppress(OSError):
            os.write(2, f"\n{message}\n".encode())
