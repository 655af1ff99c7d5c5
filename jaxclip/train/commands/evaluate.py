"""`jaxclip evaluate`: the test figures of a run, computed again from its last checkpoint."""

from pathlib import Path
from typing import Any

from rich.console import Console

from jaxclip.train.config.presets import Config
from jaxclip.train.data.sources import Data
from jaxclip.train.recording import checkpoints
from jaxclip.train.reporting import terminal
from jaxclip.train.training import loop


def config(folder: str) -> Config:
    """Reads which run a folder is of; one device is enough to measure it.

    Raises:
      UserError: if it holds no run with a checkpoint.
    """
    return checkpoints.kept_config(folder, "FOLDER").override({"parallel": "none"})


def evaluate(config: Config, data: Data, folder: str, console: Console) -> dict[str, Any]:
    """Restores the last checkpoint, prints what `jaxclip train` printed at its end, returns it."""
    run = loop.prepare(config, data)
    with checkpoints.Checkpoints(Path(folder).expanduser()) as kept:
        state, position = kept.latest(run.state)
    terminal.say(console, data.describe())
    found = run.evaluate(state.params, state.stats, data.test_images, data.test_labels)
    scores = {key: float(value) for key, value in found.items()}
    title = f"{config.preset} on {data.name}, checkpoint after epoch {position.epochs}"
    console.print(terminal.summary_table(title, terminal.test_rows(scores)))
    return scores
