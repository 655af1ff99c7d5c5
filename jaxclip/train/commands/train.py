"""`jaxclip train`: one run of a preset, told on the console and recorded in a folder.

The loop itself is in `loop`; this file says what is done after each epoch and at the end. Figures
and summary are made from what was written, so that a resumed run shows all of itself.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from jaxclip import diagnosis
from jaxclip.train.config import config_file
from jaxclip.train.config.presets import Config
from jaxclip.train.data.sources import Data
from jaxclip.train.errors import UserError
from jaxclip.train.recording import history, metrics_file, tensorboard_events
from jaxclip.train.recording.checkpoints import Checkpoints, Position
from jaxclip.train.recording.trace import Trace
from jaxclip.train.reporting import figures, layer_figure, terminal
from jaxclip.train.training import kernel_norms, loop, nonfinite, processes, tensor_norms
from jaxclip.train.training.loop import Epoch, Run


class _Told(NamedTuple):
    """Where a run is recorded and told."""

    recorder: metrics_file.Recorder
    console: Console


def train(
    config: Config,
    data: Data,
    out: str,
    console: Console,
    *,
    resume: bool = False,
    tensorboard: bool = False,
) -> dict[str, Any]:
    """Runs `config` on `data` into the folder `out`; returns what went into `summary.json`.

    With `resume` it goes on where the folder's last checkpoint stands, and ends bit for bit as if
    it had not been interrupted. The summary is written however the run ends; its `status` says
    which way that was. Of several processes one writes and speaks; the others return nothing.
    """
    start = time.perf_counter()
    config = config.override({"dataset": data.key})
    run, folder = loop.prepare(config, data), metrics_file.open_folder(out)
    terminal.say(console, data.describe())
    if processes.leads() and not resume and (aside := metrics_file.set_aside(folder)):
        terminal.say(console, f"note: {folder} held another run, which is now in {aside}")
    processes.wait()  # the folder is ready
    kernels = kernel_norms.kernels(config, run.state.params)
    summary: dict[str, Any] = {"status": "stopped", "preset": config.preset, "data": data.name}
    with Checkpoints(folder) as kept:
        state, position = kept.latest(run.state) if resume else (run.state, Position(0, 0))
        if position.epochs > config.epochs:
            problem = f"the run in {out} has {position.epochs} behind it"
            raise UserError(f"--epochs={config.epochs}: {problem}")
        run = run._replace(state=state)
        if not processes.leads():
            _epochs(run, data, position, kept, kernels)
            return {}
        metrics_file.write_json(folder / config_file.NAME, dataclasses.asdict(config), exact=True)
        sink = tensorboard_events.Events(folder, position.steps) if tensorboard else None
        try:
            with metrics_file.Recorder(folder, sink) as recorder:
                _begin(config, data, position, recorder, console)
                _epochs(run, data, position, kept, kernels, _Told(recorder, console))
            summary["status"] = "finished"
        except nonfinite.NonFiniteLossError:
            summary["status"] = "non-finite loss"
            raise
        finally:
            trace = history.read(folder)
            summary |= _outcome(trace) | {"seconds": time.perf_counter() - start}
            metrics_file.write_json(folder / "summary.json", summary)
            if trace.epochs:
                _draw(config, trace, kernels, folder)
    _tell_the_end(summary, trace, folder, console)
    return summary


def _begin(
    config: Config, data: Data, position: Position, recorder: metrics_file.Recorder, console: Console
) -> None:
    """Records that a run begins or goes on."""
    if position.epochs:
        recorder.write("resume", epoch=position.epochs, step=position.steps)
        terminal.say(console, f"resuming after {position.epochs} of {config.epochs} epochs")
    else:
        settings = dataclasses.asdict(config) | {"data": data.name, "source": data.source}
        recorder.write("run", **settings)


def _epochs(
    run: Run,
    data: Data,
    position: Position,
    kept: Checkpoints,
    kernels: tuple[kernel_norms.Kernel, ...],
    told: _Told | None = None,
) -> None:
    """Trains from `position` on: after each epoch a record, a line and a checkpoint."""
    config, watch = run.config, kernel_norms.watch(kernels, run.spread.jit)
    with terminal.progress(told.console if told else Console(quiet=True)) as bar:
        task = bar.add_task(config.preset, total=config.epochs, completed=position.epochs)
        for epoch in loop.train(run, data, position.epochs):
            seen = kernel_norms.record(kernels, watch(epoch.state))
            if told:
                _tell(config, epoch, seen, told)
            done = epoch.number + 1
            if epoch.failure is None and _due(config, done):
                kept.save(epoch.state, Position(done, done * run.steps_per_epoch))
            bar.advance(task)


def _due(config: Config, done: int) -> bool:
    """Returns whether a checkpoint follows: after every so many epochs, and the last one."""
    every = config.checkpoint_every
    return every > 0 and (done % every == 0 or done == config.epochs)


def _tell(config: Config, epoch: Epoch, seen: dict[str, float], told: _Told) -> None:
    """Records an epoch, and says of it what the preset reports."""
    records = metrics_file.step_records(epoch, config.log_every)
    told.recorder.write_all([*records, metrics_file.epoch_record(epoch) | seen])
    if config.report == "tensors" and epoch.number == 0:
        for line in _second_step(epoch):
            terminal.say(told.console, line)
    losses = epoch.telemetry["loss"][:: config.log_every] if config.report == "losses" else None
    terminal.say(told.console, terminal.epoch_line(epoch.number, metrics_file.scores(epoch), losses))
    problem = nonfinite.failure(epoch.first_step, epoch.telemetry)
    began = epoch.number == 0 or np.isfinite(epoch.telemetry["loss"][0])
    if problem and began and config.allow_nonfinite:
        terminal.say(told.console, f"note: {problem}; going on, --no-allow-nonfinite stops here")


def _second_step(epoch: Epoch) -> list[str]:
    """Returns the lines of the step whose norms the tutorial prints: the second one."""
    names, row = tensor_norms.names(epoch.telemetry), min(1, len(epoch.telemetry["loss"]) - 1)
    before, after = (
        tensor_norms.norms(epoch.telemetry, monitor, names)[row] for monitor in ("grads", "clipped")
    )
    return terminal.tensor_lines(row, names, before, after)


def _outcome(trace: Trace) -> dict[str, Any]:
    """Returns what the summary says of the run: its last epoch, and what ailed it."""
    if not trace.epochs:
        return {"epochs": 0}
    last = {k: v for k, v in trace.epochs[-1].items() if k not in ("kind", "epoch", "seconds")}
    found = diagnose(trace)
    return {"epochs": len(trace.epochs), **last, "findings": found.findings}


def diagnose(trace: Trace) -> diagnosis.Diagnosis:
    """Returns what a run's telemetry says of its gradients."""
    return diagnosis.of_metrics(trace.telemetry, "grads", "weights", "updates")


def _draw(config: Config, trace: Trace, kernels: tuple[kernel_norms.Kernel, ...], folder: Path) -> None:
    figures.run(trace, clips=bool(config.clip), path=folder / "run.png")
    figures.weights(trace, kernels, path=folder / "weights.png")
    layer_figure.draw(trace, diagnose(trace), folder / "layers.png")


def _tell_the_end(summary: dict[str, Any], trace: Trace, folder: Path, console: Console) -> None:
    largest = [v for k, v in trace.epochs[-1].items() if k.startswith("weights/largest/")]
    rows = {
        **terminal.test_rows(summary),
        "largest gradient norm, last epoch": terminal.number(summary["grad_norm_max"]),
        "largest norm of a unit, by kernel": terminal.numbers(largest),
        "epochs": str(summary["epochs"]),
        "seconds": f"{summary['seconds']:.1f}",
        "written to": str(folder),
    }
    title = f"{summary['preset']} on {summary['data']}"
    console.print(terminal.summary_table(title, rows))
    for sentence in summary["findings"]:
        terminal.say(console, f"- {sentence}")
