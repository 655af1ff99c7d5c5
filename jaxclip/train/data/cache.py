"""The program's own cache: a data set is prepared there once, by one process at a time.

It is prepared in a folder beside its place and then renamed, so no other process sees a part of it.
One that is damaged is set aside, and prepared anew.
"""

import contextlib
import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

from jaxclip.train.data import prepared
from jaxclip.train.data.prepared import DamagedError, Splits
from jaxclip.train.errors import RunError, UserError, user_path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

VARIABLE = "JAXCLIP_CACHE"
WAIT_SECONDS = 120.0  # for another process, which may have been stopped


def read(name: str) -> tuple[Path, Splits] | None:
    """Returns a data set and its place if it is in the cache and sound; says if it is damaged."""
    folder = _place()
    if folder is None or not os.path.lexists(folder / name):
        return None
    try:
        return folder / name, _read(folder, name)
    except (DamagedError, OSError) as error:
        _note(f"the copy of {name} in {folder} is damaged ({error})")
    return None


def prepare(name: str, make: Callable[[Path], object]) -> tuple[Path, Splits]:
    """Returns a data set and its place in the cache, prepared if it is not there, or damaged.

    Args:
      name: the data set.
      make: prepares it in the folder `name` below the folder that it is given.

    Raises:
      RunError: if another process damages it.
      Exception: that `make` raises, or the file system.
    """
    with _writable() as folder:
        try:
            with _alone(folder, name):
                _set_aside_if_damaged(folder, name)
                if not (folder / name).exists():
                    _make(folder, name, make)
            return folder / name, _read(folder, name)
        except DamagedError as error:
            raise RunError(f"{folder / name}: {error}; the same command tries again") from None


def _read(folder: Path, name: str) -> Splits:
    found = prepared.find(folder / name, name)
    if found is None:
        raise DamagedError(f"no {name} in it")
    return prepared.read(found)


def _make(folder: Path, name: str, make: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory(prefix=f"{name}-", suffix=".part", dir=folder) as part:
        make(Path(part))
        try:
            (Path(part) / name).rename(folder / name)
        except OSError:
            if not (folder / name).exists():  # else a process without the lock was faster
                raise


def _set_aside_if_damaged(folder: Path, name: str) -> None:
    place, aside = folder / name, folder / f"{name}.damaged"
    if not os.path.lexists(place):
        return
    try:
        _read(folder, name)
    except (DamagedError, OSError):
        shutil.rmtree(aside, ignore_errors=True)
        place.rename(aside)
        _note(f"the damaged copy of {name} is now {aside}; {name} is prepared anew")


def _place() -> Path | None:
    """Returns where the cache is: JAXCLIP_CACHE, or ~/.cache/jaxclip; None if there is no home."""
    with contextlib.suppress(UserError):
        return user_path(os.environ.get(VARIABLE) or "~/.cache/jaxclip", VARIABLE)
    return None


@contextlib.contextmanager
def _writable() -> Generator[Path, None, None]:
    """Yields the cache if it can be written, else a temporary folder, which is then removed."""
    with contextlib.ExitStack() as stack:
        folder = _place()
        try:
            if folder is None:
                raise OSError
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            temporary = tempfile.TemporaryDirectory(prefix="jaxclip-")
            folder = Path(stack.enter_context(temporary))
        yield folder


@contextlib.contextmanager
def _alone(folder: Path, name: str) -> Generator[None, None, None]:
    """Holds the lock of a data set, which ends with its process; waits for it `WAIT_SECONDS`.

    Without the lock nothing breaks, but two processes may do the same work.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(folder / f"{name}.lock", flags, 0o644)
    try:
        if _lock(descriptor, f"waiting for another process, which prepares {name} in {folder}"):
            for left in folder.glob(f"{name}-*.part"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, notice: str) -> bool:
    """Returns whether the lock was taken: the system may have none, or its holder be stopped."""
    end = None
    while fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return False
        if end is None:
            _note(notice)
            end = time.monotonic() + WAIT_SECONDS
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return False


def _note(text: str) -> None:
    print(f"jaxclip: note: {text}", file=sys.stderr)
