"""`jaxclip train`: one run of a preset, told on the console and recorded in a folder.

The loop itself is in `loop`; this file says what is done after each epoch and at the end.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxclip.train import figures, loop, record, report, specs, weights
from jaxclip.train.data import Data
from jaxclip.train.loop import Epoch
from jaxclip.train.presets import Config
from jaxclip.train.trace import Trace
from jaxclip.train.weights import Kernel


def check(config: Config) -> None:
    """Raises `UserError` if a rule of `config` cannot be read: before any data is sought."""
    for text in config.clip:
        specs.parse(text, "--clip", specs.CLIPS)
    for text in config.project:
        specs.parse(text, "--project", specs.PROJECTIONS, "layers")


def train(config: Config, data: Data, out: str, console: Console) -> dict[str, Any]:
    """Runs `config` on `data` into the folder `out`; returns what went into `summary.json`.

    The summary is written however the run ends; its `status` says which way that was.
    """
    start = time.perf_counter()
    prepared = loop.prepare(config, data)
    folder = record.open_folder(out)
    report.say(console, data.describe())
    settings = dataclasses.asdict(config) | {"data": data.name, "source": data.source}
    record.write_json(folder / "config.json", settings)
    summary: dict[str, Any] = {"status": "stopped", "preset": config.preset, "data": data.name}
    trace, kernels = Trace(config.preset), weights.kernels(config, prepared.state.params)
    watch = weights.watch(kernels)
    try:
        with record.Recorder(folder) as recorder, report.progress(console) as bar:
            recorder.write("run", **settings)
            task = bar.add_task(config.preset, total=config.epochs)
            for epoch in loop.train(prepared, data):
                trace.add(epoch, watch)
                seen = weights.record(kernels, trace.watched[-1])
                _after_epoch(config, epoch, seen, recorder, bar.console)
                summary |= {"epochs": epoch.number + 1} | record.scores(epoch) | seen
                bar.advance(task)
        summary["status"] = "finished"
    except loop.NonFiniteLossError:
        summary["status"] = "non-finite loss"
        _draw(config, trace, kernels, folder)
        raise
    finally:
        summary["seconds"] = time.perf_counter() - start
        record.write_json(folder / "summary.json", summary)
    _draw(config, trace, kernels, folder)
    console.print(_table(summary, trace.watched[-1], folder))
    return summary


def _draw(config: Config, trace: Trace, kernels: Sequence[Kernel], folder: Path) -> None:
    figures.run(trace, clips=bool(config.clip), path=folder / "run.png")
    figures.weights(trace, kernels, path=folder / "weights.png")


def _after_epoch(
    config: Config,
    epoch: Epoch,
    seen: dict[str, float],
    recorder: record.Recorder,
    console: Console,
) -> None:
    records = record.step_records(epoch, config.log_every)
    recorder.write_all([*records, record.epoch_record(epoch) | seen])
    if config.report == "tensors" and epoch.number == 0:
        for line in _second_step(epoch):
            report.say(console, line)
    losses = epoch.telemetry["loss"][:: config.log_every] if config.report == "losses" else None
    report.say(console, report.epoch_line(epoch.number, record.scores(epoch), losses))
    problem = loop.nonfinite_loss(epoch.first_step, epoch.telemetry)
    began = epoch.number == 0 or np.isfinite(epoch.telemetry["loss"][0])
    if problem and began and config.allow_nonfinite:
        report.say(console, f"note: {problem}; going on, --no-allow-nonfinite stops here")


def _second_step(epoch: Epoch) -> list[str]:
    """Returns the lines of the step whose norms the tutorial prints: the second one."""
    names, row = loop.tensor_names(epoch.telemetry), min(1, len(epoch.telemetry["loss"]) - 1)
    before, after = (
        loop.tensor_norms(epoch.telemetry, monitor, names)[row] for monitor in ("grads", "clipped")
    )
    return report.tensor_lines(row, names, before, after)


def _table(summary: dict[str, Any], seen: np.ndarray, folder: Path):
    rows = {
        "test accuracy": report.percent(summary["test_accuracy"]),
        "test loss": report.number(summary["test_loss"]),
        "largest gradient norm, last epoch": report.number(summary["grad_norm_max"]),
        "largest norm of a unit, by kernel": report.numbers(seen[:, 0]),
        "epochs": str(summary["epochs"]),
        "seconds": f"{summary['seconds']:.1f}",
        "written to": str(folder),
    }
    return report.summary_table(f"{summary['preset']} on {summary['data']}", rows)
