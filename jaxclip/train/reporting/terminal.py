"""What a run says on the console: one line an epoch, a bar where there is a terminal, tables.

Lines are plain text of any width, so that a log can be searched; only tables and the bar are drawn.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxclip.train.config import presets


def number(value: float) -> str:
    """Writes a loss or a norm as the tutorials do: 0.0811, 18.02, 302564, nan."""
    if not math.isfinite(value):
        return str(float(value))
    size = abs(value)
    if size and size < 1e-3:
        return f"{value:.2e}"
    return f"{value:.{4 if size < 10 else 2 if size < 1e4 else 0}f}"


def percent(value: float) -> str:
    """Writes a fraction in percent."""
    return f"{100 * value:.2f} %"


def numbers(values) -> str:
    """Writes a row of numbers."""
    return " ".join(number(v) for v in values)


def say(console: Console, text: str) -> None:
    """Prints a line as it is: not wrapped, not coloured, brackets and all."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def progress(console: Console) -> Progress:
    """Returns the bar over epochs; it shows on a terminal only, and goes when it is done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def epoch_line(number_of: int, scores: Mapping[str, Any], losses=None) -> str:
    """Returns an epoch's line; `losses`, if given, are those of every hundredth step."""
    shown = f"loss {number(scores['train_loss'])}" if losses is None else numbers(losses)
    parts = [
        f"epoch {number_of}: {shown}",
        f"train accuracy {percent(scores['train_accuracy'])}",
        f"test loss {number(scores['test_loss'])}",
        f"test accuracy {percent(scores['test_accuracy'])}",
        f"gradient norm {number(scores['grad_norm_mean'])}, max {number(scores['grad_norm_max'])}",
    ]
    if scores["clipped_fraction"] is not None:
        parts.append(f"clipped {percent(scores['clipped_fraction'])}")
    return " | ".join([*parts, f"rate {scores['learning_rate']:.3g}"])


def tensor_lines(step: int, names: list[str], before: np.ndarray, after: np.ndarray) -> list[str]:
    """Returns each tensor's norm before and after clipping, and last that of all together."""
    together = [np.sqrt(np.sum(np.square(norms.astype(np.float64)))) for norms in (before, after)]
    labels = " ".join([_tutorial_name(name) for name in names] + ["global"])
    return [
        f"step {step}, norms of {labels}",
        f"  before clipping: {_two_digits([*before, together[0]])}",
        f"  after clipping:  {_two_digits([*after, together[1]])}",
    ]


def _two_digits(values) -> str:
    return " ".join(f"{v:.2f}" for v in values)


def _tutorial_name(name: str) -> str:
    """Turns `layers/0/kernel` into `W1`."""
    group, index, part = name.split("/")
    letter = {"kernel": "W", "bias": "b"}[part] if group == "layers" else f"{part}_"
    return f"{letter}{int(index) + 1}"


def test_rows(scores: Mapping[str, Any]) -> dict[str, str]:
    """Returns the rows of the figures on the test images, as a run and its evaluation tell them."""
    return {
        "test accuracy": percent(scores["test_accuracy"]),
        "test loss": number(scores["test_loss"]),
    }


def summary_table(title: str, rows: dict[str, str]) -> Table:
    """Returns a table of two columns."""
    table = Table(title=title, title_justify="left", show_header=False, box=box.SIMPLE)
    table.add_column("what", overflow="fold")
    table.add_column("value", overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def presets_table() -> Table:
    """Returns every hyper-parameter of every preset."""
    table = Table(title="jaxclip train PRESET", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("flag", no_wrap=True)
    for name in presets.PRESETS:
        table.add_column(name, overflow="fold")
    table.add_row("", *presets.SUMMARIES.values(), end_section=True)
    for field in presets.fields()[1:]:
        values = [_shown(config, field.name) for config in presets.PRESETS.values()]
        table.add_row(f"--{field.name.replace('_', '-')}", *values)
    return table


def _shown(config: presets.Config, field: str) -> str:
    """Writes a field's value; a dash where the run has no use for it."""
    value = getattr(config, field)
    if not config.uses(field):
        return "-"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    unset = {"dataset": "mnist, or digits", "decay_steps": "all steps"}
    return unset[field] if value is None else str(value)
