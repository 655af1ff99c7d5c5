"""Checkpoints, by Orbax: a resumed run ends bit for bit as a run that was never interrupted.

A checkpoint is written in the background after an epoch and gets its name when it is complete. It
holds the `State` (parameters, statistics, optimizer state, random key) and the number of epochs and
steps done; with the seed, that number gives the order of the data. The run's `Config` is in
`config.json` beside it.
"""

import contextlib
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxclip.train.config import config_file, presets
from jaxclip.train.config.presets import Config
from jaxclip.train.errors import UserError, user_path
from jaxclip.train.training.loop import State

KEPT = 2
FOLDER = "checkpoints"
# A resumed run may change these fields: reports, length and devices, but nothing that it computes.
_MAY_CHANGE = (
    *("dataset", "epochs", "log_every", "checkpoint_every", "report", "allow_nonfinite"),
    "parallel",
)


class Position(NamedTuple):
    """The number of epochs and steps that a run has done."""

    epochs: int
    steps: int


class Checkpoints(contextlib.AbstractContextManager):
    """The last checkpoints in a run's folder."""

    def __init__(self, folder: Path):
        """Opens the checkpoints of an existing folder; there may be none yet."""
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, cleanup_tmp_directories=True)
        self._folder = folder
        self._manager = ocp.CheckpointManager(folder.resolve() / FOLDER, options=options)

    def __exit__(self, *raised: object) -> None:
        """Waits until all checkpoints are on disk."""
        self._manager.close()

    def save(self, state: State, position: Position) -> None:
        """Starts to write a checkpoint; `state` may be donated once this returns."""
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(_copy(state)),
            position=ocp.args.JsonSave(position._asdict() | {"arrays": _arrays(state)}),
        )
        self._manager.save(position.epochs, args=content)

    def latest(self, like: State) -> tuple[State, Position]:
        """Returns the newest checkpoint.

        Args:
          like: a state with the expected shapes, dtypes and shardings.

        Raises:
          UserError: if there is none, or it belongs to another network or optimizer chain.
        """
        number = self._manager.latest_step()
        if number is None:
            raise UserError(f"no checkpoint in {self._folder}")
        # Compare the arrays' descriptions first: Orbax's error for a missing array is long.
        description = ocp.args.Composite(position=ocp.args.JsonRestore())
        position = dict(self._manager.restore(number, args=description)["position"])
        for saved, expected in itertools.zip_longest(position.pop("arrays"), _arrays(like)):
            if saved != expected:
                problem = f"belongs to another network or chain: it holds {saved}, not {expected}"
                raise UserError(f"the checkpoint in {self._folder} {problem}")
        abstract = ocp.args.StandardRestore(jax.tree.map(_abstract, like))
        restored = self._manager.restore(number, args=ocp.args.Composite(state=abstract))
        return restored["state"], Position(**position)


def _arrays(state: State) -> list[str]:
    """Returns path, shape and dtype of every array of a state."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [f"{jax.tree_util.keystr(path)} {x.shape} {x.dtype}" for path, x in leaves]


@jax.jit
def _copy(state: State) -> State:
    """Copies a state for writing in the background: the next step reuses its buffers."""
    return jax.tree.map(jnp.copy, state)


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def saved_config(folder: str, flag: str) -> Config:
    """Returns the `Config` of a run that has checkpoints.

    Args:
      folder: the run's output folder.
      flag: the flag that named it, for errors.

    Raises:
      UserError: if there is no checkpoint.
    """
    path = user_path(folder, flag)
    if not any(entry.name.isdigit() for entry in _entries(path / FOLDER)):
        raise UserError(f"{flag}: no checkpoint in {folder}")
    return config_file.config(path / config_file.NAME, flag)


def check(folder: str, config: Config) -> Config:
    """Checks that the run in a folder can be resumed with `config`.

    Returns:
      `config` with the data set that the run was trained on.

    Raises:
      UserError: if the folder has no checkpoint, or its run computed something else.
    """
    saved = saved_config(folder, "--resume")
    for field in presets.fields():
        if _differs(field.name, saved, config):
            was, given = (_shown(getattr(c, field.name)) for c in (saved, config))
            difference = f"{presets.flag(field.name)}={was}, not {given}"
            raise UserError(f"--resume: the run in {folder} has {difference}")
    return config.override({"dataset": saved.dataset})


def _differs(field: str, saved: Config, config: Config) -> bool:
    if field == "epochs" and config.schedule != "constant" and config.decay_steps is None:
        return saved.epochs != config.epochs  # the schedule depends on the run's length
    if field == "dataset" and None not in (saved.dataset, config.dataset):
        return saved.dataset != config.dataset
    return field not in _MAY_CHANGE and getattr(saved, field) != getattr(config, field)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _entries(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(folder.iterdir())
    return []
