"""`jaxclip evaluate`: computes a run's test scores from its last checkpoint."""

from functools import partial
from typing import Any

from rich.console import Console

from jaxclip.train.commands.train_screen import test_rows
from jaxclip.train.config.presets import Config
from jaxclip.train.data import Data
from jaxclip.train.errors import user_path
from jaxclip.train.recording import checkpoints, resuming
from jaxclip.train.reporting import terminal
from jaxclip.train.training import loop
from jaxclip.train.words import count


def config(folder: str) -> Config:
    """Returns the `Config` of the run in a folder, for one device.

    Raises:
      UserError: if the folder holds no run with a checkpoint.
    """
    return resuming.saved_config(folder, "FOLDER").override({"parallel": "none"})


def run(config: Config, data: Data, folder: str, console: Console) -> dict[str, Any]:
    """Restores the last checkpoint; prints and returns its test scores."""
    prepared = loop.prepare(config, data)
    with checkpoints.Checkpoints(user_path(folder, "FOLDER"), config) as saved:
        state, position, *_ = saved.latest(prepared.state, partial(terminal.say, console))
    terminal.say(console, data.describe())
    test = data.test_images, data.test_labels
    scores = {k: float(v) for k, v in prepared.evaluate(state.params, state.stats, *test).items()}
    done = count(position.epochs, "epoch")
    if position.begun:
        done += " and " + count(position.begun, "step")
    title = f"{config.preset} on {data.name}, checkpoint after {done} of {config.epochs}"
    terminal.records(console, title, test_rows(scores))
    return scores
