"""Standard output and errors that no run depends on.

A reader that goes away, a full disk behind `> FILE` or a closed descriptor does not end a run: its
output is dropped, its files are written. A character that the console does not have is escaped.
"""

import contextlib
import errno
import io
import os
import sys
from typing import TextIO


class _Raw(io.RawIOBase):
    """Writes to a descriptor; drops everything after the first failure, and keeps that."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self.failure: OSError | None = None

    def write(self, data) -> int:
        if self.failure is None:
            try:
                return os.write(self._descriptor, data)
            except OSError as error:
                self.failure = error
        return len(data)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


_output = _Raw(1)


def install() -> None:
    """Replaces both streams; to be called first, before a file can get a closed descriptor."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # the new descriptor is the lowest one that is free
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _text(sys.stdout, _output)
    sys.stderr = _text(sys.stderr, _Raw(2))


def _text(old: TextIO | None, raw: _Raw) -> io.TextIOWrapper:
    encoding = getattr(old, "encoding", None) or "utf-8"
    buffer = io.BufferedWriter(raw)
    is_error = raw.fileno() == 2
    return io.TextIOWrapper(
        buffer, encoding, "backslashreplace", line_buffering=is_error or raw.isatty()
    )


def failure() -> str | None:
    """Returns why output was lost, None if it was not, or its reader only wanted the beginning."""
    with contextlib.suppress(ValueError):
        sys.stdout.flush()
    error = _output.failure
    return None if error is None or error.errno == errno.EPIPE else error.strerror
