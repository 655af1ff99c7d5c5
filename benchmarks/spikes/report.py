"""The report of `benchmarks.spikes`: numbers as JSON, tables as Markdown.

It contains no times and no date, so a second run on the same machine writes the same files.
"""

import importlib.metadata
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jaxclip
from benchmarks import report_files
from benchmarks.spikes import figure, networks, rules, training

Numbers = Mapping[str, list[Any]]  # of the runs of a plan, as `training.measure` returns them
Setting = tuple[str, str]  # the name of a learning rate, and that of a scenario

COMMAND = "python -m benchmarks.spikes"


class Task(NamedTuple):
    """A network, the size of its runs, and its batches by scenario."""

    network: networks.Network
    size: training.Size
    plans: dict[str, training.Plan]


class Row(NamedTuple):
    """A rule in a section: its numbers and losses by learning rate and scenario."""

    rule: str
    numbers: dict[Setting, Numbers]
    losses: dict[Setting, np.ndarray]


class Table(NamedTuple):
    """A section, its rows, and the loss above which a run of it is lost."""

    section: rules.Section
    rows: list[Row]
    lost: float


def content(smoke: bool, tasks: Mapping[str, Task], tables: Sequence[Table]) -> dict[str, Any]:
    """Returns the content of `spikes.json`."""
    named = ("jax", "jaxlib", "optax", "flax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in named}
    versions = {"jaxclip": jaxclip.__version__, "python": platform.python_version()} | versions
    return {
        "command": f"{COMMAND} {'--smoke' if smoke else '--data-dir mnist'}",
        "versions": versions,
        "networks": {name: _task(task) for name, task in tasks.items()},
        "sections": {table.section.name: _section(table) for table in tables},
    }


def _task(task: Task) -> dict[str, Any]:
    bad = {name: [_bad_steps(kind) for kind in p.kind] for name, p in task.plans.items()}
    facts = {"data": task.network.data, "lost_above": task.network.lost}
    return facts | {"size": task.size._asdict(), "bad_steps": bad}


def _bad_steps(kind: np.ndarray) -> dict[str, list[int]]:
    """Returns the bad steps of a seed, by kind."""
    names = networks.KINDS.items()
    return {name: np.flatnonzero(kind == i).tolist() for i, name in names if i in kind}


def _section(table: Table) -> dict[str, Any]:
    rows = {
        row.rule: {f"{rate}, {scenario}": n for (rate, scenario), n in row.numbers.items()}
        for row in table.rows
    }
    return {"title": table.section.title, "rates": dict(table.section.rates), "rules": rows}


def open_folder(out: str) -> Path:
    """Creates the output folder; raises if an existing report has no markers."""
    folder = report_files.open_folder(out, "spikes")
    (folder / "figures").mkdir(exist_ok=True)
    return folder


def write(folder: Path, numbers: dict[str, Any], tables: Sequence[Table]) -> None:
    """Writes the JSON file, the tables and the figure."""
    report_files.write(folder, "spikes", numbers, markdown(numbers, tables))
    figure.draw(tables, folder / "figures" / "spikes.png")


def markdown(numbers: dict[str, Any], tables: Sequence[Table]) -> str:
    """Returns the tables."""
    versions = ", ".join(f"{name} {version}" for name, version in numbers["versions"].items())
    data = "; ".join(f"{name}: {facts['data']}" for name, facts in numbers["networks"].items())
    return "\n".join(
        [f"`{numbers['command']}`; {versions}.", "", f"{data}.", "", *map(_table, tables)]
    )


def _table(table: Table) -> str:
    """Returns a section: all losses, and the steps touched where there are bad batches."""
    section = table.section
    settings = list(table.rows[0].numbers)
    last = [setting for setting in settings if setting[1] == section.scenarios[-1]]
    columns = [(f"final loss, {' '.join(s)}", [s], "final_loss") for s in settings]
    columns += [(f"loss meanwhile, {' '.join(s)}", [s], "loss_beside_bad") for s in last]
    columns += [(f"{kind} steps touched", last, f"touched_{kind}") for kind in ("ordinary", "bad")]
    rows = [
        [f"`{row.rule}`", *(_cell(row, table.lost, at, key) for _, at, key in columns)]
        for row in table.rows
    ]
    rates = " and ".join(f"{rate:g} ({name})" for name, rate in section.rates.items())
    heads = ["rule", *(head for head, _, _ in columns)]
    title = f"### {section.title}\n\nLearning rate {rates}. A run is lost above {table.lost:.3g}.\n"
    return f"{title}\n{report_files.table(heads, rows)}"


def _cell(row: Row, lost: float, settings: Sequence[Setting], key: str) -> str:
    values = [row.numbers[setting][key] for setting in settings]
    if key.startswith("touched"):
        shares = ", ".join(f"{100 * statistics.mean(seeds):.0f}" for seeds in values)
        return f"{shares} %"
    (losses,) = values
    count = sum(not loss <= lost for loss in losses) if key == "final_loss" else 0
    return _spread(losses) + (f", {count} lost" if count else "")


def _spread(losses: Sequence[float]) -> str:
    """Returns the median and the range of the seeds."""
    ordered = np.sort(np.nan_to_num(losses, nan=np.inf, posinf=np.inf))
    low, middle, high = map(_number, (ordered[0], np.median(ordered), ordered[-1]))
    return f"{middle} ({low} to {high})" if low != high else middle


def _number(loss: float) -> str:
    if not np.isfinite(loss):
        return "not finite"
    if loss >= 1e5:
        return f"{loss:.0e}".replace("+", "")
    return f"{loss:.3f}" if loss < 10 else f"{loss:.0f}"
