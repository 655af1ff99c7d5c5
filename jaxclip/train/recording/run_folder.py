"""A run's output folder: created, locked while a run writes into it, cleared of an earlier run.

The lock is the system's, on a file in the folder: it ends with the process that holds it, also with
one that is killed. Where the system or the file system has no locks, none is taken.
"""

import contextlib
import errno
import itertools
import os
from pathlib import Path

from jaxclip.train.errors import RunError, UserError, user_path
from jaxclip.train.recording import files

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".jaxclip.lock"
_FILES_OF_A_RUN = (  # in the order of moving: a run without its metrics is not resumed
    *("metrics.jsonl", "checkpoints", "tensorboard", "summary.json", "compare.json"),
    *("run.png", "layers.png", "weights.png", "compare.png"),
    *("vanishing.png", "exploding.png", "max-norm.png", "config.json"),
)


class RunFolder(contextlib.AbstractContextManager):
    """An output folder that one run at a time writes into.

    Attributes:
      path: the folder.
    """

    def __init__(self, out: str, *, lock: bool = True):
        """Creates the folder if it is missing, and locks it.

        Args:
          out: the path.
          lock: False for a process that does not write, one of several.

        Raises:
          UserError: if the folder is not writable, or another run writes into it.
        """
        self.path = user_path(out, "--out")
        self._lock: int | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if lock:
                self._lock = files.open_for(self.path / LOCK, os.O_RDWR)
        except OSError as error:
            raise UserError(f"--out={out}: cannot be written to ({error.strerror})") from None
        if self._lock is not None and not _is_locked(self._lock):
            owner = os.read(self._lock, 20).decode("ascii", "replace").strip()
            os.close(self._lock)
            problem = f"another run (process {owner}) writes into this folder"
            raise UserError(f"--out={out}: {problem}; wait for its end, or choose another")

    def __exit__(self, *raised: object) -> None:
        """Unlocks the folder."""
        if self._lock is not None:
            os.close(self._lock)

    def check(self) -> None:
        """Raises `RunError` if the folder was removed or replaced since the run began."""
        if self._lock is None:
            return
        try:
            here = os.stat(self.path / LOCK, follow_symlinks=False)
            same = os.path.samestat(here, os.fstat(self._lock))
        except OSError:
            same = False
        if not same:
            raise RunError(f"{self.path}: was removed or replaced while the run wrote into it")

    def set_aside(self) -> Path | None:
        """Moves the files of an earlier run into a new folder `earlier-N` below.

        `earlier-N.part` is its name until all of them are there; a run that finds such a folder
        completes it.

        Returns:
          The new folder, None if there was no earlier run.
        """
        unfinished = sorted(self.path.glob("earlier-*.part"))
        entries = [path for name in _FILES_OF_A_RUN if os.path.lexists(path := self.path / name)]
        if not entries and not unfinished:
            return None
        candidates = (self.path / f"earlier-{number}" for number in itertools.count(1))
        earlier = next(path for path in candidates if not os.path.lexists(path))
        earlier = unfinished[0].with_suffix("") if unfinished else earlier
        part = earlier.with_name(earlier.name + ".part")
        with files.explained(earlier):
            part.mkdir(exist_ok=True)
            for entry in entries:
                entry.rename(part / entry.name)
            part.rename(earlier)
            files.sync_folder(self.path)
        return earlier


def _is_locked(descriptor: int) -> bool:
    """Locks an open file and writes this process's number into it; returns False if it cannot."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    with contextlib.suppress(OSError):  # a full disk
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return True
