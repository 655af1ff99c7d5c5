"""Writes files so that a reader, or a run after a crash, sees the whole old or the whole new one.

Symbolic links are replaced or refused, never followed: a link in a run's folder cannot direct our
writing to another file.
"""

import contextlib
import errno
import os
import re
from pathlib import Path

from jaxclip.train.errors import RunError

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def replace(path: Path, content: bytes) -> None:
    """Writes a file: a temporary file beside it, flushed to the disk, takes its place.

    Raises:
      RunError: if that fails; the earlier file, if there is one, is unchanged.
    """
    part = path.with_name(path.name + ".part")
    try:
        with explained(path):
            part.unlink(missing_ok=True)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o644)
            try:
                write_all(descriptor, content)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(part, path)
            sync_folder(path.parent)
    except RunError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def open_for(path: Path, flags: int) -> int:
    """Opens a file, created if it is missing, and returns its descriptor; refuses links."""
    try:
        return os.open(path, flags | os.O_CREAT | _NO_FOLLOW, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RunError(f"{path}: is a symbolic link, not written to") from None
        raise


def write_all(descriptor: int, content: bytes) -> None:
    """Writes all bytes; the system may take them in parts."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def append(descriptor: int, content: bytes) -> None:
    """Writes all bytes at the end of a file, or none: it keeps its length if an error is raised."""
    whole = os.fstat(descriptor).st_size
    try:
        write_all(descriptor, content)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, whole)
        raise


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def explained(path: Path):
    """Turns an `OSError` into a `RunError` of one line that names the path and the cause."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error


def cause(error: BaseException | None) -> str | None:
    """Returns the system's words for a failure, also for another library's; None without any."""
    while error:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        # TensorStore's errors are of other types, with the system's number in the text.
        if match := re.search(r"os_error_code='(\d+)'", str(error)):
            return os.strerror(int(match[1]))
        error = error.__cause__ or error.__context__
    return None
