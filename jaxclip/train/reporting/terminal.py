"""Terminal output: one line an epoch, a progress bar, tables.

Lines are plain text of any width, so that a log can be searched; only tables and the bar are drawn.
"""

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


def console(quiet: bool = False) -> Console:
    """Returns Rich's console; outside a terminal it is 120 columns wide, so tables do not wrap."""
    result = Console(quiet=quiet)
    has_width = result.is_terminal or "COLUMNS" in os.environ
    return result if has_width else Console(width=120, quiet=quiet)


def number(value: float) -> str:
    """Formats a loss or a norm as the tutorials do: 0.0811, 18.02, 3.026e+05, nan."""
    if not math.isfinite(value):
        return str(float(value))
    size = abs(value)
    if size and size < 1e-3:
        return f"{value:.2e}"
    if size >= 1e5:
        return f"{value:.3e}"
    return f"{value:.{4 if size < 10 else 2 if size < 1e4 else 0}f}"


def percent(value: float) -> str:
    """Formats a fraction in percent."""
    return f"{100 * value:.2f} %"


def numbers(values) -> str:
    """Formats a row of numbers."""
    return " ".join(number(v) for v in values)


def say(console: Console, text: str) -> None:
    """Prints a line without wrapping, colours and markup."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def as_flag(finding: str) -> str:
    """A finding, with the flag of the rule that it recommends."""
    rule = re.search(r"jaxclip\.clip_by_(global_norm)\((\S+)\)", finding)
    return finding if rule is None else f"{finding} Here: --clip {rule[1]}={rule[2]}"


def progress(console: Console) -> Progress:
    """Returns a progress bar over epochs, shown on a terminal only, and removed at the end."""
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


def epoch_line(epoch: int, scores: Mapping[str, Any], losses=None) -> str:
    """Returns an epoch's line; `losses`, those of recorded steps, replace the mean loss."""
    loss = f"loss {number(scores['train_loss'])}" if losses is None else numbers(losses)
    parts = [
        f"epoch {epoch}: {loss}",
        f"train accuracy {percent(scores['train_accuracy'])}",
        f"test loss {number(scores['test_loss'])}",
        f"test accuracy {percent(scores['test_accuracy'])}",
        f"gradient norm {number(scores['grad_norm_mean'])}, max {number(scores['grad_norm_max'])}",
    ]
    if scores["clipped_fraction"] is not None:
        parts.append(f"clipped {percent(scores['clipped_fraction'])}")
    return " | ".join([*parts, f"rate {scores['learning_rate']:.3g}"])


def tensor_lines(step: int, names: list[str], before: np.ndarray, after: np.ndarray) -> list[str]:
    """Returns each tensor's norm before and after clipping, and the global norm last."""
    total = [np.sqrt(np.sum(np.square(norms.astype(np.float64)))) for norms in (before, after)]
    labels = " ".join([_tutorial_name(name) for name in names] + ["global"])
    return [
        f"step {step}, norms of {labels}",
        f"  before clipping: {_two_digits([*before, total[0]])}",
        f"  after clipping:  {_two_digits([*after, total[1]])}",
    ]


def _two_digits(values) -> str:
    return " ".join(f"{v:.2f}" for v in values)


def _tutorial_name(name: str) -> str:
    """Turns `layers/0/kernel` into `W1`."""
    group, index, part = name.split("/")
    letter = {"kernel": "W", "bias": "b"}[part] if group == "layers" else f"{part}_"
    return f"{letter}{int(index) + 1}"


def test_rows(scores: Mapping[str, Any]) -> dict[str, str]:
    """Returns the rows of a summary table that show the scores on the test images."""
    return {
        "test accuracy": percent(scores["test_accuracy"]),
        "test loss": number(scores["test_loss"]),
    }


def summary_table(title: str, rows: dict[str, str]) -> Table:
    """Returns a table of names and values."""
    table = Table(title=Text(title), title_justify="left", show_header=False, box=box.SIMPLE)
    table.add_column("name", overflow="fold")
    table.add_column("value", overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))  # a path may hold brackets
    return table
