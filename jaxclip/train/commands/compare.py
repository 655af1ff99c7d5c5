"""`jaxclip compare`: trains the same network under several rules, seeds and learning rates.

Every flag of a run can be repeated; all combinations are trained. Runs that differ only in seed and
numbers share a program (`batched_runs`). A run with a non-finite loss counts as lost in the table.
"""

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress, TaskID

from jaxclip.train.commands.train import set_earlier_run_aside
from jaxclip.train.config.presets import Config
from jaxclip.train.data import Data
from jaxclip.train.errors import RunError, UserError
from jaxclip.train.recording import strict_json
from jaxclip.train.recording.history import History
from jaxclip.train.recording.metrics_file import MetricsFile
from jaxclip.train.recording.run_folder import RunFolder
from jaxclip.train.reporting import comparison, comparison_table, epoch_table, terminal
from jaxclip.train.training import batched_runs, loop
from jaxclip.train.training.blocks import Part
from jaxclip.train.words import count

# On a CPU one run uses all cores, unless its arrays are so small that most of a step is overhead.
# Measured on two cores: vmap over four runs takes 1.1 times as long as the four in turn for
# 784-512-256-10, and 0.7 times as long for 784-32-32-10.
SMALL_ON_CPU = 50_000  # parameters
_RULES = ("clip", "project", "guard")


class Variant(NamedTuple):
    """Runs that differ in their seed alone: a row of the table.

    Attributes:
      rule: its name without the learning rate.
      learning_rate: the learning rate of the first step.
      configs: one for each seed.
    """

    rule: str
    learning_rate: float
    configs: tuple[Config, ...]


class _Run(NamedTuple):
    """One run of a variant."""

    variant: Variant
    config: Config
    history: History


def variants(base: Config, axes: Mapping[str, Sequence[Any]]) -> list[Variant]:
    """Returns all combinations of values.

    Args:
      base: the settings that all runs share.
      axes: the values of each field that varies, in the order of the fields.
    """
    seeds = axes.get("seed", (base.seed,))
    others = {field: values for field, values in axes.items() if field != "seed"}
    result = []
    for values in itertools.product(*others.values()):
        chosen = dict(zip(others, values, strict=True)) | {"allow_nonfinite": False}
        configs = tuple(dataclasses.replace(base, **chosen, seed=seed) for seed in seeds)
        varied = [f for f in others if len(others[f]) > 1 and f != "learning_rate"]
        named = varied or [field for field in others if field in _RULES]
        rule = ", ".join(_word(field, chosen[field]) for field in named) or "as the preset"
        result.append(Variant(rule, configs[0].learning_rate, configs))
    return result


def _word(field: str, value: Any) -> str:
    """Returns a field's value as the table's first column shows it."""
    if field in _RULES:
        return " + ".join(value) or f"no {field}"
    name = field.replace("_", " ")
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {','.join(map(str, value)) if isinstance(value, tuple) else value}"


def run(
    variants: Sequence[Variant],
    data: Data,
    out: str,
    console: Console,
    *,
    at_once: bool | None = None,
) -> dict[str, Any]:
    """Trains all variants into the folder `out`; returns the content of `compare.json`.

    Args:
      variants: the runs, by row of the table.
      data: the images.
      out: the output folder.
      console: where to print.
      at_once: train the runs of a program together; None: if that is expected to be faster.
    """
    start = time.perf_counter()
    _check(variants, data, at_once)
    with RunFolder(out) as folder:
        terminal.say(console, data.describe())
        set_earlier_run_aside(folder, console)
        return _run(variants, data, folder, console, at_once, start)


def _run(
    variants: Sequence[Variant],
    data: Data,
    folder: RunFolder,
    console: Console,
    at_once: bool | None,
    start: float,
) -> dict[str, Any]:
    runs = [_Run(v, config, History(v.rule)) for v in variants for config in v.configs]
    _train(runs, data, folder, console, at_once)
    preset = runs[0].config.preset
    histories = [[run.history for run in runs if run.variant is v] for v in variants]
    rows = [_row(*pair) for pair in zip(variants, histories, strict=True)]
    content = {
        "preset": preset,
        "data": data.name,
        "device": jax.devices()[0].device_kind,
        "rows": rows,
        "seconds": time.perf_counter() - start,
    }
    strict_json.write(folder.path / "compare.json", content)
    comparison.draw(rows, histories, folder.path / "compare.png")
    comparison_table.show(console, f"{preset} on {data.name}", rows)
    terminal.say(console, f"written to {folder.path} ({content['seconds']:.0f} s)")
    if sum(map(comparison_table.lost_runs, rows)) == len(runs):
        lost = f"the loss of {'each' if len(runs) > 1 else 'the'} run was not finite"
        raise RunError(f"{lost}; a smaller --learning-rate or another --clip may help")
    return content


def _check(variants: Sequence[Variant], data: Data, at_once: bool | None) -> None:
    for variant in variants:
        config = variant.configs[0]
        if at_once and config.parallel != "none":
            raise UserError(f"--at-once: cannot be combined with --parallel={config.parallel}")
    for variant in variants:
        loop.check(variant.configs[0], data)


def _train(
    runs: Sequence[_Run], data: Data, folder: RunFolder, console: Console, at_once: bool | None
) -> None:
    """Trains the runs program by program, and records their epochs."""
    configs = [run.config for run in runs]
    groups = batched_runs.groups(configs)
    variants = len({id(run.variant) for run in runs})
    parts = count(len(runs), "run"), count(variants, "variant"), count(len(groups), "program")
    terminal.say(console, "{} of {}, {}".format(*parts))
    with MetricsFile(folder.path) as metrics, terminal.progress(console) as bar:
        first = {"kind": "run", "preset": configs[0].preset}
        metrics.write(first | {"data": data.name, "source": data.source})
        task = bar.add_task("compiling", total=sum(config.epochs for config in configs))
        done = 0
        for group in groups:
            members = [configs[i] for i in group]
            together = is_faster_at_once(members, data) if at_once is None else at_once
            bar.update(task, description="compiling")
            share = (len(group) if together else 1) / loop.steps_per_epoch(members[0], data)
            watch = partial(_watch, folder, bar, task, members[0].epochs, share)
            for i, epoch in batched_runs.train(members, data, at_once=together, after_block=watch):
                run = runs[group[i]]
                folder.check()
                run.history.add(epoch)
                metrics.write_epoch(epoch, run.config.log_every, **_labels(run))
                done += 1
                bar.update(task, completed=done)


def _watch(
    folder: RunFolder, bar: Progress, task: TaskID, epochs: int, share: float, part: Part
) -> None:
    """Checks the folder, and moves the bar by the `share` of an epoch that each step is."""
    folder.check()
    name, steps = epoch_table.name(part.number, epochs), len(part.blocks[-1]["loss"])
    bar.update(task, description=name, advance=share * steps)


def is_faster_at_once(configs: Sequence[Config], data: Data) -> bool:
    """Returns whether `vmap` over these runs is expected to be faster than one after the other."""
    if jax.default_backend() != "cpu":
        return True
    widths = (data.train_images.shape[1], *configs[0].sizes, 10)
    parameters = sum(m * n for m, n in itertools.pairwise(widths))
    return parameters <= SMALL_ON_CPU


def _labels(run: _Run) -> dict[str, Any]:
    rate = run.variant.learning_rate  # a record's `learning_rate` is that of its step
    return {"rule": run.variant.rule, "first_learning_rate": rate, "seed": run.config.seed}


def _row(variant: Variant, histories: Sequence[History]) -> dict[str, Any]:
    """Returns a variant's row: the last scores of its finished runs, and which runs were lost."""
    lost = [history.first_nonfinite() for history in histories]
    finished = [h for h, step in zip(histories, lost, strict=True) if step is None]
    scores = {
        key: [float(history.epochs[-1][key]) for history in finished]
        for key in ("train_loss", "test_loss", "test_accuracy", "grad_norm_max")
    }
    seconds = [epoch["seconds"] for history in histories for epoch in history.epochs]
    return {
        "rule": variant.rule,
        "learning_rate": variant.learning_rate,
        "config": dataclasses.asdict(variant.configs[0]),
        "seeds": [config.seed for config in variant.configs],
        "lost_at_step": lost,
        **scores,
        "clipped_fraction": [_mean_clipped(history) for history in histories],
        "seconds_per_epoch": float(np.median(seconds)),
    }


def _mean_clipped(history: History) -> float | None:
    fractions = [epoch["clipped_fraction"] for epoch in history.epochs]
    return None if None in fractions else float(np.mean(fractions))
