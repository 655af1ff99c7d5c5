"""`jaxclip diagnose FILE`: says from logged metrics whether gradients vanish or explode."""

import collections
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from jaxclip import diagnosis
from jaxclip.diagnosis import Diagnosis
from jaxclip.plot.json_lines import Record, Run
from jaxclip.plot.log import Log
from jaxclip.train.commands import diagnosing, logs
from jaxclip.train.errors import UserError, figure_path, first_line
from jaxclip.train.recording.history import History
from jaxclip.train.reporting import layer_figure, terminal
from jaxclip.train.training.tensor_norms import Telemetry
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
    path = figure_path(out)
    runs = [run for run in logs.read(file, console) if any(map(_has_norm, run.records))]
    if not runs:
        text = "no line has a norm, such as grads/norm: log jaxclip.metrics(state)"
        raise UserError(f"FILE={file}: {text}")
    histories = [_history(run) for run in runs]
    several = len(runs) > 1
    results = [_diagnose(history, console, names, several) for history in histories]
    if several:
        terminal.say(console, f"figure: none, as the file has {len(runs)} runs")
    else:
        layer_figure.draw(histories[0], results[0], path)
        terminal.say(console, f"figure: {out}")
    return results


def _has_norm(row: Record) -> bool:
    return any(map(_is_norm, row))


def _is_norm(key: str) -> bool:
    return key.endswith("/norm") or "/norm/" in key


def _history(run: Run) -> History:
    """Returns the steps of a run that have norms, and its epochs if this program wrote it."""
    result = History(run.name)
    result.settings = dict(run.settings)
    epochs = {row["epoch"]: row for row in run.records if {"epoch", "steps"} <= row.keys()}
    if run.settings and epochs:
        result.epochs = list(_alike(epochs, lambda key: True).values())
    by_step = Log([row for row in run.records if _has_norm(row)]).rows()
    kept = _alike(by_step, _is_norm)
    numbers, rows = np.array(list(kept)), list(kept.values())
    whole = (numbers == np.round(numbers)).all()
    result.steps = numbers.astype(int) if whole else np.arange(len(rows))
    columns = {key: [row.get(key) for row in rows] for key in rows[0]}
    result.telemetry = {k: np.array(v) for k, v in columns.items() if _is_whole(k, v)}
    return result


def _is_whole(key: str, values: Sequence[float | None]) -> bool:
    """Returns whether a key has a value in each row, and a count one that can be a count."""
    is_count = key.endswith("count")
    return all(x is not None and (not is_count or abs(x) < 2**53) for x in values)


def _alike(rows: dict[Any, Record], counts: Callable[[str], bool]) -> dict[Any, Record]:
    """Returns the rows, in order, that have the same keys that count as most rows have.

    Rows with norms of leaves come before more rows without.
    """
    forms = {i: frozenset(filter(counts, row)) for i, row in rows.items()}
    often = collections.Counter(forms.values())
    usual = max(often, key=lambda form: (any("/norm/" in key for key in form), often[form]))
    return {i: rows[i] for i in sorted(rows) if forms[i] == usual}


def _diagnose(
    history: History, console: Console, names: dict[str, str | None], several: bool
) -> Diagnosis:
    telemetry, gradients, others = _monitors(history.telemetry, names)
    found = _diagnosis(history, telemetry, gradients, others)
    steps = history.steps
    text = f"{count(len(steps), 'recorded step')}, {steps[0]} to {steps[-1]}:"
    terminal.say(console, f"{history.name}: {text}" if several else f"findings from {text}")
    settings = history.settings
    is_ours = isinstance(settings.get("learning_rate"), float)
    for sentence in found.findings:
        text = terminal.as_flag(sentence, settings) if is_ours else sentence
        terminal.say(console, f"- {text}")
    if gradients == _ALONE:
        terminal.say(console, f"- note: the log has no norms of layers; {_HOW}.")
    else:
        terminal.say(console, "")
        _show_layers(found, console)
    terminal.say(console, "")
    return found


def _monitors(
    telemetry: Telemetry, names: dict[str, str | None]
) -> tuple[Telemetry, str, dict[str, str | None]]:
    """Returns the norms, and the names of the monitors of gradients, and of weights and updates.

    Without a monitor, the norm that a rule recorded takes the place of a monitor of one leaf.
    """
    there = list(dict.fromkeys(k.partition("/norm/")[0] for k in telemetry if "/norm/" in k))
    for flag, name in names.items():
        if name is not None and name not in there:
            raise UserError(f"--{flag}={name}: no such monitor, {choose(name, there)}")
    if not there:
        rule = next(key.removesuffix("/norm") for key in telemetry if key.endswith("/norm"))
        one = {f"{_ALONE}/norm/all": telemetry[f"{rule}/norm"]}
        return telemetry | one, _ALONE, dict.fromkeys(_USUAL)
    chosen = {flag: names[flag] or _first(there, *usual) for flag, usual in _USUAL.items()}
    free = [name for name in there if name not in chosen.values()] or there
    return telemetry, names["gradients"] or _first(free, "grads") or free[0], chosen


def _first(names: Sequence[str], *words: str) -> str | None:
    """Returns the first name that is one of the words, or ends with it after a slash."""
    return next((name for name in names if name.rpartition("/")[2] in words), None)


def _diagnosis(
    history: History, telemetry: Telemetry, gradients: str, others: dict[str, str | None]
) -> Diagnosis:
    leaves = [key.partition("/norm/")[2] for key in telemetry if "/norm/" in key]
    own = leaves if history.settings else []
    layers = {m[0] for leaf in own if (m := re.match(r"layers/\d+(?=/)", leaf))}
    # Monitors count steps; a count without `nonfinite_count` would be that of a rule.
    steps = history.steps
    counts = {f"{gradients}/count": steps + 1, f"{gradients}/nonfinite_count": 0 * steps}
    metrics: dict[str, Any] = counts | telemetry
    loss = telemetry.get("loss")
    chance = diagnosing.CHANCE.get(str(history.settings.get("loss")))
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
