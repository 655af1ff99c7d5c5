"""Checkpoints, by Orbax: a resumed run ends bit for bit as a run that was never interrupted.

A checkpoint is written in the background and gets its name when it is whole: `3` after three
epochs, `3+40` after forty more steps. It holds the `State` (parameters, statistics, optimizer
state, random key), the telemetry of an epoch that has only begun, and a `manifest`. With the seed,
the number of steps gives the order of the data.
"""

import contextlib
import dataclasses
import gc
import io
import itertools
import logging
import shutil
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxclip.train.config import config_file
from jaxclip.train.config.presets import Config
from jaxclip.train.errors import RunError, UserError, first_line
from jaxclip.train.recording import files, manifest, resuming
from jaxclip.train.recording.manifest import DamagedError
from jaxclip.train.recording.resuming import FOLDER, names
from jaxclip.train.training import processes
from jaxclip.train.training.loop import State
from jaxclip.train.training.tensor_norms import Telemetry

KEPT = 2
_TASKS_END_SECONDS = 0.2
# Orbax's threads and tasks log their errors, which the main thread reports once.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class Position(NamedTuple):
    """The progress of a run.

    Attributes:
      epochs: the number of whole epochs.
      steps: the number of steps, those of an epoch that has only begun included.
      begun: the number of steps in that epoch.
    """

    epochs: int
    steps: int
    begun: int = 0

    @property
    def name(self) -> str:
        """The name of its checkpoint."""
        return f"{self.epochs}+{self.begun}" if self.begun else str(self.epochs)


class Checkpoint(NamedTuple):
    """The content of a checkpoint.

    Attributes:
      state: the arrays, on the devices.
      position: the progress of the run.
      telemetry: that of the steps in an epoch that has only begun.
      seconds: the duration of those steps.
    """

    state: State
    position: Position
    telemetry: Telemetry = {}  # noqa: RUF012
    seconds: float = 0.0


class Checkpoints(contextlib.AbstractContextManager):
    """The last checkpoints in a run's folder."""

    def __init__(self, folder: Path, config: Config):
        """Opens the checkpoints of an existing folder; there may be none yet.

        Args:
          folder: the run's folder.
          config: the run's settings.
        """
        self._run, self._folder, self._config = folder, folder.absolute() / FOLDER, config
        # Without OCDBT: its files are merged by a pattern, which fails for a path with brackets.
        self._orbax = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False))
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._next: deque[Checkpoint] = deque(maxlen=1)  # a newer one takes its place
        self._writing: Future[None] | None = None
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable

    def _unraisable(self, event: "sys.UnraisableHookArgs") -> None:
        """Leaves out the errors of Orbax's tasks that outlive a failure to write."""
        if not isinstance(event.exc_value, RuntimeError | OSError | ValueError):
            self._hook(event)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Waits until the last checkpoint is on disk."""
        try:
            with contextlib.suppress(RunError) if error else contextlib.nullcontext():
                self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()
            sys.unraisablehook = self._hook

    def save(self, content: Checkpoint) -> None:
        """Starts to write a checkpoint; its state may be donated once this returns.

        It is written after the one that is being written. If a third follows before that is done,
        the second is left out. Several processes write at once, together.

        Raises:
          RunError: if an earlier one could not be written.
        """
        self.raise_failure()
        self._next.append(content._replace(state=_copy(content.state)))
        if jax.process_count() > 1:
            self._write_all()
        elif self._writing is None:
            self._writing = self._thread.submit(self._write_all)

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk; raises `RunError` if it cannot be written."""
        while self._writing or self._next:
            writing, self._writing = self._writing, None
            (writing or self._thread.submit(self._write_all)).result()

    def raise_failure(self) -> None:
        """Raises `RunError` if a checkpoint could not be written; does not wait."""
        if self._writing and self._writing.done():
            writing, self._writing = self._writing, None
            writing.result()

    def _write_all(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._write(self._next.pop())

    def _write(self, content: Checkpoint) -> None:
        part = self._folder / f"{content.position.name}.part"
        with self._one_error(part):
            if processes.is_leader():
                self._begin(part)
            processes.wait_for_all()  # until the folder is there
            arrays = _named(content.state)
            sums = manifest.array_sums(arrays)
            self._orbax.save(part / "state", args=ocp.args.PyTreeSave(arrays))
            if processes.is_leader():
                self._complete(part, content, sums)
            processes.wait_for_all()

    @contextlib.contextmanager
    def _one_error(self, part: Path) -> Generator[None, None, None]:
        """Turns a failure to write into a `RunError`, and removes the unfinished checkpoint."""
        try:
            yield
            return
        except Exception as error:
            if not (cause := files.cause(error)):
                raise
        self._next.clear()
        time.sleep(_TASKS_END_SECONDS)
        with warnings.catch_warnings(action="ignore"):
            gc.collect()  # Orbax's other tasks, while their errors are not printed
        shutil.rmtree(part, ignore_errors=True)
        raise RunError(f"{self._run / FOLDER}: a checkpoint cannot be written ({cause})")

    def _begin(self, part: Path) -> None:
        if self._folder.is_symlink():
            raise RunError(f"{self._run / FOLDER}: is a symbolic link, not written to")
        self._folder.mkdir(exist_ok=True)  # but not its parents: they may have been removed
        for unfinished in self._folder.glob("*.part"):
            shutil.rmtree(unfinished)
        part.mkdir()

    def _complete(self, part: Path, content: Checkpoint, sums: dict[str, Any]) -> None:
        """Writes the rest of a checkpoint, gives it its name, and removes the oldest ones."""
        if content.telemetry:
            packed = io.BytesIO()
            np.savez(packed, **content.telemetry)  # pyright: ignore[reportArgumentType]
            files.replace(part / "telemetry.npz", packed.getvalue())
        saved = {"position": content.position._asdict(), "seconds": content.seconds}
        manifest.write(part, saved | {"config": dataclasses.asdict(self._config), "arrays": sums})
        final = self._folder / content.position.name
        if final.exists():  # of the same run at the same position
            final.rename(final.with_name(f"{final.name}-old.part"))
        part.rename(final)
        files.sync_folder(self._folder)
        later = {*names(self._run)[-KEPT:], final.name}
        for name in names(self._run):
            if name not in later:
                shutil.rmtree(self._folder / name)

    def latest(self, like: State, say: Callable[[str], None], *, aside: bool = False) -> Checkpoint:
        """Returns the newest checkpoint that is as it was written.

        Args:
          like: a state with the expected shapes, dtypes and shardings.
          say: prints a line; receives one for each damaged checkpoint.
          aside: rename the damaged ones, so that they are not tried again.

        Raises:
          UserError: if there is none, or it belongs to another run.
          RunError: if all are damaged.
        """
        found, damaged = names(self._run)[::-1], []
        for name in found:
            try:
                result = self._load(name, like)
            except DamagedError as error:
                damaged.append((name, error))
                continue
            for other, error in damaged:
                now = self._set_aside(other) if aside and processes.is_leader() else None
                kept = f", now {now}" if now else ""
                say(f"note: checkpoint {other} is damaged ({error}){kept}; taking {name}")
            return result
        if not damaged:
            raise UserError(f"no checkpoint in {self._run}")
        reasons = "; ".join(f"{name}: {error}" for name, error in damaged)
        advice = "without --resume the run starts anew, and keeps them"
        raise RunError(f"all checkpoints in {self._run} are damaged ({reasons}); {advice}")

    def _set_aside(self, name: str) -> str:
        candidates = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        now = next(
            path
            for end in candidates
            if not (path := self._folder / f"damaged-{name}{end}").exists()
        )
        with files.explained(now):
            (self._folder / name).rename(now)
        return now.name

    def _load(self, name: str, like: State) -> Checkpoint:
        folder = self._folder / name
        content = manifest.read(folder)
        self._check_belongs(content, like)
        manifest.check_files(folder, content)
        host = self._restore(folder, content)
        leaves, structure = jax.tree.flatten(like)
        placed = [_place(host[key], x) for key, x in zip(_named(like), leaves, strict=True)]
        telemetry = {}
        if "telemetry.npz" in content["files"]:
            with np.load(folder / "telemetry.npz", allow_pickle=False) as saved:
                telemetry = dict(saved)
        state = _copy(jax.tree.unflatten(structure, placed))
        return Checkpoint(state, Position(**content["position"]), telemetry, content["seconds"])

    def _restore(self, folder: Path, content: dict[str, Any]) -> dict[str, np.ndarray]:
        """Reads the arrays and checks their sums."""
        kinds = {key: ocp.RestoreArgs(restore_type=np.ndarray) for key in content["arrays"]}
        try:
            args = ocp.args.PyTreeRestore(restore_args=kinds)
            result = self._orbax.restore(folder / "state", args=args)
        except MemoryError:
            raise
        except Exception as error:
            raise DamagedError(first_line(error)[:200]) from error
        manifest.check_arrays(result, content)
        return result

    def _check_belongs(self, content: dict[str, Any], like: State) -> None:
        config = config_file.of_fields(content["config"], f"the checkpoint in {self._run}")
        if difference := resuming.difference(config, self._config):
            raise UserError(f"the checkpoint in {self._run} has {difference}")
        arrays = content["arrays"].items()
        saved = sorted(f"{k} {tuple(v['shape'])} {v['dtype']}" for k, v in arrays)
        expected = sorted(f"{k} {x.shape} {x.dtype}" for k, x in _named(like).items())
        for one, other in itertools.zip_longest(saved, expected):
            if one != other:
                problem = f"belongs to another network or chain: it holds {one}, not {other}"
                raise UserError(f"the checkpoint in {self._run} {problem}")


def _named(state: State) -> dict[str, jax.Array]:
    """Returns the arrays of a state by path: `params.layers.0.kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def _place(host: np.ndarray, like: jax.Array) -> jax.Array:
    return jax.make_array_from_callback(host.shape, like.sharding, lambda index: host[index])


@jax.jit
def _copy(state: State) -> State:
    """Copies a state for writing in the background: the next step reuses its buffers."""
    return jax.tree.map(jnp.copy, state)
