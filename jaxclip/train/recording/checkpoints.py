"""Checkpoints, by Orbax: what a run needs to go on bit for bit as if it had never stopped.

One is written after an epoch, in the background, and appears under its name only when it is whole.
It holds the `State` (parameters, statistics, the chain's state, the random key) and the position:
how many epochs and steps are done, from which, with the seed, the order of the data follows. Which
`Config` it belongs to is in the folder's `config.json`.
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
from jaxclip.train.errors import UserError
from jaxclip.train.training.loop import State

KEPT = 2
FOLDER = "checkpoints"
# What a run may change when it goes on: how much it tells, how long it trains, and on what devices;
# not what it does.
_FREE = (
    *("dataset", "epochs", "log_every", "checkpoint_every", "report", "allow_nonfinite"),
    "parallel",
)


class Position(NamedTuple):
    """Where a run stands: epochs and steps that it has behind it."""

    epochs: int
    steps: int


class Checkpoints(contextlib.AbstractContextManager):
    """The last few checkpoints of a run's folder."""

    def __init__(self, folder: Path):
        """Opens them; `folder` exists, its checkpoints need not."""
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, cleanup_tmp_directories=True)
        self._folder = folder
        self._manager = ocp.CheckpointManager(folder.resolve() / FOLDER, options=options)

    def __exit__(self, *raised: object) -> None:
        """Waits until what was saved is on disk, however the run ended."""
        self._manager.close()

    def save(self, state: State, position: Position) -> None:
        """Begins to write a checkpoint; `state` may be donated as soon as this returns."""
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(_copy(state)),
            position=ocp.args.JsonSave(position._asdict() | {"arrays": _arrays(state)}),
        )
        self._manager.save(position.epochs, args=content)

    def latest(self, like: State) -> tuple[State, Position]:
        """Returns the newest checkpoint.

        Args:
          like: a state of the shapes, dtypes and shardings that are expected.

        Raises:
          UserError: if there is none, or it is of another network or chain.
        """
        number = self._manager.latest_step()
        if number is None:
            raise UserError(f"no checkpoint in {self._folder}")
        # The description first: Orbax, asked for arrays that are not there, complains at length.
        where = ocp.args.Composite(position=ocp.args.JsonRestore())
        position = dict(self._manager.restore(number, args=where)["position"])
        for held, wanted in itertools.zip_longest(position.pop("arrays"), _arrays(like)):
            if held != wanted:
                what = f"the checkpoint in {self._folder} is of another network or chain"
                raise UserError(f"{what}: it holds {held}, not {wanted}")
        wanted = ocp.args.StandardRestore(jax.tree.map(_abstract, like))
        found = self._manager.restore(number, args=ocp.args.Composite(state=wanted))
        return found["state"], Position(**position)


def _arrays(state: State) -> list[str]:
    """Describes every array of a state: its path, shape and dtype."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [f"{jax.tree_util.keystr(path)} {x.shape} {x.dtype}" for path, x in leaves]


@jax.jit
def _copy(state: State) -> State:
    """Returns buffers that stay while they are written: those of `state` are given away."""
    return jax.tree.map(jnp.copy, state)


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def kept_config(folder: str, flag: str) -> Config:
    """Reads which run a folder has checkpoints of: before any data is sought.

    Args:
      folder: the run's output folder.
      flag: what the user asked for it with, for the errors.

    Raises:
      UserError: if there is no checkpoint.
    """
    path = Path(folder).expanduser()
    if not any(entry.name.isdigit() for entry in _entries(path / FOLDER)):
        raise UserError(f"{flag}: no checkpoint in {folder}")
    return config_file.config(path / config_file.NAME, flag)


def check(folder: str, config: Config) -> Config:
    """Sees that the run in a folder can be resumed as `config`.

    Returns:
      The run, with the data set that it was trained on.

    Raises:
      UserError: if the folder has no checkpoint, or is of a run that did something else.
    """
    kept = kept_config(folder, "--resume")
    for field in presets.fields():
        if _differs(field.name, kept, config):
            flag = f"--{field.name.replace('_', '-')}"
            was, given = (_shown(getattr(c, field.name)) for c in (kept, config))
            raise UserError(f"--resume: the run in {folder} has {flag}={was}, not {given}")
    return config.override({"dataset": kept.dataset})


def _differs(field: str, kept: Config, config: Config) -> bool:
    if field == "epochs" and config.schedule != "constant" and config.decay_steps is None:
        return kept.epochs != config.epochs  # the schedule ends with the run
    if field == "dataset" and None not in (kept.dataset, config.dataset):
        return kept.dataset != config.dataset
    return field not in _FREE and getattr(kept, field) != getattr(config, field)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _entries(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(folder.iterdir())
    return []
