"""`jaxclip diagnose FILE`: says from logged metrics whether gradients vanish or explode."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from jaxclip import diagnosis
from jaxclip.diagnosis import Diagnosis
from jaxclip.train.commands import diagnosing
from jaxclip.train.errors import UserError, first_line, user_path
from jaxclip.train.recording import log_file
from jaxclip.train.recording.history import History
from jaxclip.train.recording.log_file import Log
from jaxclip.train.reporting import layer_figure, terminal
from jaxclip.train.words import choose, count

_CLASSES = 10  # of each data set of this program
# The monitors that a name stands for, if the user gives none.
_USUAL = {"weights": ("weights", "params"), "updates": ("updates",)}
_HOW = 'to see layers, put jaxclip.monitor(name="grads") first in the chain'


def run(file: str, console: Console, out: str, names: dict[str, str | None]) -> list[Diagnosis]:
    """Prints and returns the diagnosis of each run in a file; draws the layers if it has one run.

    Args:
      file: a log, the folder of a run, or `-` for standard input.
      console: where to print.
      out: the figure.
      names: of the monitors, by `gradients`, `weights` and `updates`; None: those that are usual.
    """
    logs, damaged = log_file.read(file)
    if damaged:
        terminal.say(console, f"note: {count(damaged, 'damaged line')} left out")
    return [_run(log, console, names, None if len(logs) > 1 else out) for log in logs]


def _run(log: Log, console: Console, names: dict[str, str | None], out: str | None) -> Diagnosis:
    log, gradients, others = _monitors(log, names)
    found = _diagnosis(log, gradients, others)
    steps = f"{count(len(log.steps), 'recorded step')}, {log.steps[0]} to {log.steps[-1]}:"
    terminal.say(console, f"{log.name}: {steps}" if log.name else f"findings from {steps}")
    rate = log.settings.get("learning_rate")
    for sentence in found.findings:
        text = terminal.as_flag(sentence, rate) if isinstance(rate, float) else sentence
        terminal.say(console, f"- {text}")
    terminal.say(console, "")
    _show_layers(found, console)
    if out is not None:
        history = History(str(log.settings.get("preset", "log")))
        history.steps, history.telemetry, history.epochs = log.steps, log.telemetry, log.epochs
        layer_figure.draw(history, found, user_path(out, "--out"))
        terminal.say(console, "")
        terminal.say(console, f"figure: {out}")
    return found


def _monitors(log: Log, names: dict[str, str | None]) -> tuple[Log, str, dict[str, str | None]]:
    """Returns the names of the monitors of the gradients, and of the weights and updates.

    Without a monitor, the norm that a rule recorded takes the place of a monitor of one leaf.
    """
    there = list(dict.fromkeys(k.partition("/norm/")[0] for k in log.telemetry if "/norm/" in k))
    for flag, name in names.items():
        if name is not None and name not in there:
            raise UserError(f"--{flag}={name}: no such monitor, {choose(name, there)}")
    chosen: dict[str, str | None] = {
        flag: names[flag] or next((name for name in usual if name in there), None)
        for flag, usual in _USUAL.items()
    }
    free = [name for name in there if name not in chosen.values()]
    if gradients := names["gradients"] or next(
        iter(sorted(free, key=lambda n: n != "grads")), None
    ):
        return log, gradients, chosen
    rule = next(key.removesuffix("/norm") for key in log.telemetry if key.endswith("/norm"))
    one = {f"{rule}/norm/all/gradients": log.telemetry[f"{rule}/norm"]}
    return log._replace(telemetry=log.telemetry | one), rule, dict.fromkeys(_USUAL)


def _diagnosis(log: Log, gradients: str, others: dict[str, str | None]) -> Diagnosis:
    leaves = [key.partition("/norm/")[2] for key in log.telemetry if "/norm/" in key]
    own = leaves if log.settings else []
    layers = {m[0] for leaf in own if (m := re.match(r"layers/\d+(?=/)", leaf))}
    metrics: dict[str, Any] = {f"{gradients}/count": log.steps + 1} | log.telemetry
    loss = log.telemetry.get("loss")
    chance = diagnosing.CHANCE.get(log.settings.get("loss", ""))
    try:
        return diagnosis.of_metrics(
            metrics,
            *(gradients, others["weights"], others["updates"]),
            order=sorted(layers, key=lambda name: int(name.partition("/")[2])) or None,
            loss=loss,
            chance=None if chance is None else chance(_CLASSES),
        )
    except ValueError as error:
        raise UserError(f"FILE: {first_line(error)}") from None


def _show_layers(found: Diagnosis, console: Console) -> None:
    """Prints the medians of each layer's norms."""
    fields = ("gradient", "bias", "weight", "update", "ratio")
    heads = ("layer", "gradient", "of biases", "weight", "update", "update/ weight")
    rows = [
        [layer.name, *(_median(getattr(layer, field)) for field in fields)]
        for layer in found.layers
    ]
    optional = ("update", "weight", "of biases")
    terminal.table(console, heads, rows, optional=optional)


def _median(values: Sequence[float] | np.ndarray | None) -> str:
    finite = np.empty(0) if values is None else np.asarray(values)[np.isfinite(values)]
    return terminal.number(float(np.median(finite))) if finite.size else "-"
