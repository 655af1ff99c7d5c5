"""The report of `benchmarks.spikes`: numbers as JSON, tables as Markdown.

It contains no times and no date, so a second run writes the same files.
"""

import importlib.metadata
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jaxclip
from benchmarks import report_files
from benchmarks.spikes import figure, training

Numbers = Mapping[str, list[Any]]  # of a run, as `training.measure` returns them

COMMAND = "python -m benchmarks.spikes"


class Row(NamedTuple):
    """A rule in a section: its numbers and curves by scenario."""

    rule: str
    numbers: dict[str, Numbers]
    curves: dict[str, np.ndarray]


class Table(NamedTuple):
    """The rows of a section."""

    name: str
    title: str
    scenarios: tuple[str, ...]
    rows: list[Row]


def content(
    smoke: bool,
    data_name: str,
    size: training.Size,
    plans: Mapping[str, training.Plan],
    tables: Sequence[Table],
) -> dict[str, Any]:
    """Returns the content of `spikes.json`."""
    named = ("jax", "jaxlib", "optax", "flax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in named}
    return {
        "command": f"{COMMAND} {'--smoke' if smoke else '--data-dir mnist'}",
        "versions": {"jaxclip": jaxclip.__version__} | versions,
        "data": data_name,
        "size": size._asdict(),
        "spike": {"window": training.WINDOW, "jump": training.JUMP, "apart": training.APART},
        "failed": {"final_loss_above": training.FAILED},
        "bad_steps": {name: _bad_steps(plan) for name, plan in plans.items()},
        "sections": {
            table.name: {"title": table.title, "rules": {r.rule: r.numbers for r in table.rows}}
            for table in tables
        },
    }


def _bad_steps(plan: training.Plan) -> list[dict[str, list[int]]]:
    """Returns the bad steps of each seed, by kind."""
    return [
        {
            name: np.flatnonzero(kind == i).tolist()
            for i, name in training.KINDS.items()
            if i in kind
        }
        for kind in plan.kind
    ]


def open_folder(out: str) -> Path:
    """Creates the output folder; raises if an existing report has no markers."""
    folder = report_files.open_folder(out, "spikes")
    (folder / "figures").mkdir(exist_ok=True)
    return folder


def write(
    folder: Path,
    numbers: dict[str, Any],
    tables: Sequence[Table],
    plans: Mapping[str, training.Plan],
) -> None:
    """Writes the JSON file, the tables and the figure."""
    report_files.write(folder, "spikes", numbers, _markdown(numbers, tables))
    figure.draw(tables, plans, folder / "figures" / "spikes.png")


def _markdown(numbers: dict[str, Any], tables: Sequence[Table]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in numbers["versions"].items())
    head = f"`{numbers['command']}`; {versions}; data: {numbers['data']}."
    return "\n".join([head, "", *(_table(table, numbers["size"]["seeds"]) for table in tables)])


def _table(table: Table, seeds: int) -> str:
    """Returns a section: losses and spikes of all scenarios, other columns of the last one."""
    last = table.scenarios[-1]
    columns = [(f"final loss, {s}", s, _final_loss) for s in table.scenarios]
    columns += [("test accuracy, %", last, _accuracy), (f"failed, of {seeds}", last, _failed)]
    columns += [(f"loss spikes, {s}", s, _spikes) for s in table.scenarios]
    columns += [("ordinary steps touched", last, _share("touched_ordinary"))]
    columns += [("bad steps touched", last, _share("touched_bad"))]
    lines = [_line(["rule", *(head for head, _, _ in columns)])]
    lines += [_line(["---"] * (len(columns) + 1))]
    for row in table.rows:
        cells = [cell(row.numbers[scenario]) for _, scenario, cell in columns]
        lines += [_line([f"`{row.rule}`", *cells])]
    return "\n".join([f"### {table.title}", "", *lines, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _final_loss(numbers: Numbers) -> str:
    return _spread(numbers["final_loss"], ".3f")


def _accuracy(numbers: Numbers) -> str:
    return _spread([100 * accuracy for accuracy in numbers["test_accuracy"]], ".1f")


def _failed(numbers: Numbers) -> str:
    return str(sum(map(training.failed, numbers["final_loss"])))


def _spikes(numbers: Numbers) -> str:
    return f"{statistics.mean(numbers['spikes']):.1f}"


def _share(key: str) -> Callable[[Numbers], str]:
    return lambda numbers: f"{100 * statistics.mean(numbers[key]):.0f} %"


def _spread(values: Sequence[float], form: str) -> str:
    """Returns the median and the range of the seeds."""
    if not np.isfinite(values).all():
        return "not finite"
    low, middle, high = (format(f(values), form) for f in (min, statistics.median, max))
    return f"{middle} ({low} to {high})"
