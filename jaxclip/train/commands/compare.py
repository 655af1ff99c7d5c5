"""`jaxclip compare`: the same problem under several rules, seeds and learning rates, side by side.

Every flag of a run can be given several times; what is trained are all combinations. Runs that
differ only in seed and numbers share a program (`together`). A run that is lost is a result here,
not an error.
"""

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from jaxclip.train.config.presets import Config
from jaxclip.train.data.sources import Data
from jaxclip.train.errors import UserError
from jaxclip.train.recording import metrics_file
from jaxclip.train.recording.trace import Trace
from jaxclip.train.reporting import comparison, terminal
from jaxclip.train.training import batched_runs, loop

# On a CPU one run keeps the cores busy, unless its arrays are so small that most of a step is
# overhead: measured on two cores, vmap over four runs of 784-512-256-10 takes 1.1 times as long as
# the four in turn, of 784-32-32-10 0.7 times as long.
SMALL_ON_CPU = 50_000  # parameters
_RULES = ("clip", "project", "guard")


class Variant(NamedTuple):
    """Some runs that differ in their seed alone: a row of the table.

    Attributes:
      rule: how it is called without its learning rate.
      learning_rate: that of the first step.
      configs: one for each seed.
    """

    rule: str
    learning_rate: float
    configs: tuple[Config, ...]


def variants(base: Config, axes: Mapping[str, Sequence[Any]]) -> list[Variant]:
    """Returns all combinations of what was given several times.

    Args:
      base: what all runs have in common.
      axes: for a field of the config its values, in the order of the fields.
    """
    seeds = axes.get("seed", (base.seed,))
    others = {field: values for field, values in axes.items() if field != "seed"}
    found = []
    for values in itertools.product(*others.values()):
        chosen = dict(zip(others, values, strict=True)) | {"allow_nonfinite": False}
        configs = tuple(dataclasses.replace(base, **chosen, seed=seed) for seed in seeds)
        named = [_word(f, chosen[f]) for f in others if len(others[f]) > 1 and f != "learning_rate"]
        if not named:
            named = [_word(field, chosen[field]) for field in others if field in _RULES]
        rule = ", ".join(named) or "as the preset"
        found.append(Variant(rule, configs[0].learning_rate, configs))
    return found


def _word(field: str, value: Any) -> str:
    """Writes one value of one field, as the table's first column has it."""
    if field in _RULES:
        return " + ".join(value) or f"no {field}"
    name = field.replace("_", " ")
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {','.join(map(str, value)) if isinstance(value, tuple) else value}"


def compare(
    chosen: Sequence[Variant],
    data: Data,
    out: str,
    console: Console,
    *,
    at_once: bool | None = None,
) -> dict[str, Any]:
    """Trains all variants into the folder `out`; returns what went into `compare.json`.

    `at_once` says whether runs of one program are trained together; None: where that is faster.
    """
    start = time.perf_counter()
    configs = [config for variant in chosen for config in variant.configs]
    for config in configs:
        if at_once and config.parallel != "none":
            raise UserError(f"--at-once: cannot be combined with --parallel={config.parallel}")
    owners = [i for i, variant in enumerate(chosen) for _ in variant.configs]
    for variant in chosen:
        loop.check(variant.configs[0], data)
    folder = metrics_file.open_folder(out)
    terminal.say(console, data.describe())
    if aside := metrics_file.set_aside(folder):
        terminal.say(console, f"note: {folder} held another run, which is now in {aside}")
    groups = batched_runs.groups(configs)
    terminal.say(console, f"{len(configs)} runs of {len(chosen)} variants, {len(groups)} programs")
    traces = [Trace(variant.rule) for variant in chosen for _ in variant.configs]
    with metrics_file.Recorder(folder) as recorder, terminal.progress(console) as bar:
        recorder.write("run", preset=configs[0].preset, data=data.name, source=data.source)
        task = bar.add_task("compare", total=sum(config.epochs for config in configs))
        for group in groups:
            members = [configs[i] for i in group]
            faster = is_faster_at_once(members, data) if at_once is None else at_once
            for which, epoch in batched_runs.train(members, data, at_once=faster):
                run = group[which]
                labels = _labels(chosen[owners[run]], configs[run])
                traces[run].add(epoch)
                records = metrics_file.step_records(epoch, configs[run].log_every, **labels)
                recorder.write_all([*records, metrics_file.epoch_record(epoch, **labels)])
                bar.advance(task)
    by_variant = [
        [t for t, o in zip(traces, owners, strict=True) if o == i] for i in range(len(chosen))
    ]
    rows = [_row(variant, own) for variant, own in zip(chosen, by_variant, strict=True)]
    content = {
        "preset": configs[0].preset,
        "data": data.name,
        "device": jax.devices()[0].device_kind,
        "rows": rows,
        "seconds": time.perf_counter() - start,
    }
    metrics_file.write_json(folder / "compare.json", content)
    comparison.draw(rows, by_variant, folder / "compare.png")
    console.print(comparison.table(f"{configs[0].preset} on {data.name}", rows))
    terminal.say(console, f"written to {folder} ({content['seconds']:.0f} s)")
    return content


def is_faster_at_once(configs: Sequence[Config], data: Data) -> bool:
    """Returns whether `vmap` over these runs is expected to be faster than one after the other."""
    if jax.default_backend() != "cpu":
        return True
    widths = (data.train_images.shape[1], *configs[0].sizes, 10)
    parameters = sum(m * n for m, n in itertools.pairwise(widths))
    return parameters <= SMALL_ON_CPU


def _labels(variant: Variant, config: Config) -> dict[str, Any]:
    rate = variant.learning_rate  # the records themselves have that of the step
    return {"rule": variant.rule, "first_learning_rate": rate, "seed": config.seed}


def _row(variant: Variant, traces: Sequence[Trace]) -> dict[str, Any]:
    """Sums the seeds up: medians of what the last epoch was, and how many runs were lost."""
    lost = [trace.first_nonfinite() for trace in traces]
    ends = [t for t, at in zip(traces, lost, strict=True) if at is None]
    scores = {
        key: [float(trace.epochs[-1][key]) for trace in ends]
        for key in ("train_loss", "test_loss", "test_accuracy", "grad_norm_max")
    }
    fractions = [_mean_clipped(trace) for trace in traces]
    return {
        "rule": variant.rule,
        "learning_rate": variant.learning_rate,
        "config": dataclasses.asdict(variant.configs[0]),
        "seeds": [config.seed for config in variant.configs],
        "lost_at_step": lost,
        **scores,
        "clipped_fraction": fractions,
        "seconds_per_epoch": float(np.median([e["seconds"] for t in traces for e in t.epochs])),
    }


def _mean_clipped(trace: Trace) -> float | None:
    known = [epoch["clipped_fraction"] for epoch in trace.epochs]
    return None if None in known else float(np.mean(known))
