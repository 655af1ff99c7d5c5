"""`jaxclip diagnose FILE`: says from logged metrics whether gradients vanish or explode."""

import re
from collections.abc import Sequence
from pathlib import Path
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
_ALONE = "all gradients"  # stands for the monitor in a log of rules alone
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
    results = [_run(log, console, names) for log in logs]
    if len(logs) > 1:
        terminal.say(console, f"figure: none, as the file has {len(logs)} runs")
    else:
        _draw(logs[0], results[0], file, out)
        terminal.say(console, f"figure: {out}")
    return results


def _run(log: Log, console: Console, names: dict[str, str | None]) -> Diagnosis:
    log, gradients, others = _monitors(log, names)
    found = _diagnosis(log, gradients, others)
    steps = f"{count(len(log.steps), 'recorded step')}, {log.steps[0]} to {log.steps[-1]}:"
    terminal.say(console, f"{log.name}: {steps}" if log.name else f"findings from {steps}")
    rate = log.settings.get("learning_rate")
    for sentence in found.findings:
        text = terminal.as_flag(sentence, rate) if isinstance(rate, float) else sentence
        terminal.say(console, f"- {text}")
    if gradients == _ALONE:
        terminal.say(console, f"- note: the log has no norms of layers; {_HOW}.")
    else:
        terminal.say(console, "")
        _show_layers(found, console)
    terminal.say(console, "")
    return found


def _draw(log: Log, found: Diagnosis, file: str, out: str) -> None:
    history = History(str(log.settings.get("preset", Path(file).name)))
    history.steps, history.telemetry, history.epochs = log.steps, log.telemetry, log.epochs
    history.settings = log.settings
    history.settings = log.settings
    layer_figure.draw(history, found, user_path(out, "--out"))


def _monitors(log: Log, names: dict[str, str | None]) -> tuple[Log, str, dict[str, str | None]]:
    """Returns the names of the monitors of the gradients, and of the weights and updates.

    Without a monitor, the norm that a rule recorded takes the place of a monitor of one leaf.
    """
    there = list(dict.fromkeys(k.partition("/norm/")[0] for k in log.telemetry if "/norm/" in k))
    for flag, name in names.items():
        if name is not None and name not in there:
            raise UserError(f"--{flag}={name}: no such monitor, {choose(name, there)}")
    if not there:
        rule = next(key.removesuffix("/norm") for key in log.telemetry if key.endswith("/norm"))
        one = {f"{_ALONE}/norm/all": log.telemetry[f"{rule}/norm"]}
        return log._replace(telemetry=log.telemetry | one), _ALONE, dict.fromkeys(_USUAL)
    chosen = {flag: names[flag] or _first(there, *usual) for flag, usual in _USUAL.items()}
    free = [name for name in there if name not in chosen.values()] or there
    return log, names["gradients"] or _first(free, "grads") or free[0], chosen


def _first(names: Sequence[str], *words: str) -> str | None:
    """Returns the first name that is one of the words, or ends with it after a slash."""
    return next((name for name in names if name.rpartition("/")[2] in words), None)


def _diagnosis(log: Log, gradients: str, others: dict[str, str | None]) -> Diagnosis:
    leaves = [key.partition("/norm/")[2] for key in log.telemetry if "/norm/" in key]
    own = leaves if log.settings else []
    layers = {m[0] for leaf in own if (m := re.match(r"layers/\d+(?=/)", leaf))}
    # Monitors count steps; a count without `nonfinite_count` would be that of a rule.
    counts = {f"{gradients}/count": log.steps + 1, f"{gradients}/nonfinite_count": 0 * log.steps}
    metrics: dict[str, Any] = counts | log.telemetry
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
