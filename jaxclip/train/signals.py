"""Signals: the first ends a run after its block of steps, the second ends the program at once.

The system hands each signal to a thread of our own, so one that comes while the main thread
compiles or waits for the device counts too. Python's own exception on Ctrl-C would end an import, a
callback or a library's lock at any point, and the run with a traceback or not at all. Every file is
written whole (`recording.files`), so the program may end at any moment.
"""

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator

from jaxclip._core.start import NUMBERS

SECONDS = 4.5  # from the first signal to the end, at most


class _Program:
    """The state of this program's end."""

    def __init__(self):
        self.installed = False
        self.requested: int | None = None
        self.advice: Callable[[], str] | None = None  # within `graceful`
        self.exit_code: int | None = None
        self.sockets: tuple[socket.socket, ...] = ()


_program = _Program()


def install() -> None:
    """Takes over the signals of this program; to be called first, in its main thread.

    Python's package has held them back during its imports (`jaxclip._core.start`).
    """
    ours, systems = _program.sockets = socket.socketpair()
    systems.setblocking(False)
    signal.set_wakeup_fd(systems.fileno(), warn_on_full_buffer=False)
    _program.installed = True
    threading.Thread(target=_watch, args=(ours,), name="signals", daemon=True).start()
    atexit.register(_leave)  # the first to be registered runs last
    handle()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)


def handle() -> None:
    """Installs the handlers again, after a library's own; does nothing in other programs."""
    if _program.installed:
        for number in NUMBERS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as with `nohup`
                signal.signal(number, _nothing)


def _nothing(number: int, frame: object) -> None:
    """Python's part of a signal; the thread has got it already."""


def exit_with(code: int) -> int:
    """Sets the exit code of the program, and returns it."""
    _program.exit_code = code
    return code


def requested() -> int | None:
    """Returns the signal that asked the run to end, None if there was none."""
    return _program.requested


def request(number: int) -> None:
    """Asks the run to end, as a signal does."""
    if _program.advice is None or _program.requested is not None:
        end(number)
    _program.requested = number


@contextlib.contextmanager
def graceful(advice: Callable[[], str]) -> Generator[None, None, None]:
    """Within it the first signal is noted for `requested`, and ends the program `SECONDS` later.

    Args:
      advice: returns how to go on, for the line that is printed if the run cannot end in time.
    """
    _program.advice = advice
    try:
        yield
    finally:
        _program.advice = None
        if not _program.installed:  # in a test
            _program.requested = None


def describe(number: int) -> str:
    """Returns a signal's name."""
    return signal.Signals(number).name


def end(number: int) -> None:
    """Ends the program at once, with one line unless it has ended already."""
    if _program.exit_code is None:
        advice = _program.advice() if _program.advice else "the same command starts it again"
        with contextlib.suppress(OSError):
            os.write(2, f"jaxclip: ended by {describe(number)}; {advice}\n".encode())
    os._exit(128 + number)


def _watch(ours: socket.socket) -> None:
    deadline = None
    while True:
        ours.settimeout(deadline and max(deadline - time.monotonic(), 0.001))
        try:
            numbers = [number for number in ours.recv(64) if number in NUMBERS]
        except TimeoutError:
            end(_program.requested or signal.SIGINT)
            continue
        for number in numbers:
            request(number)
            deadline = deadline or time.monotonic() + SECONDS


def _leave() -> None:
    """Ends the program without Python's last steps, in which other threads' calls may crash."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(1 if _program.exit_code is None else _program.exit_code)  # 1: after a traceback
