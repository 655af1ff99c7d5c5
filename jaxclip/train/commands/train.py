"""`jaxclip train`: trains one run, prints a line an epoch, and records it in a folder.

Figures and summary are made from the files written, so a resumed run shows all of its epochs.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from rich.console import Console

from jaxclip.diagnosis import Diagnosis
from jaxclip.train import signals
from jaxclip.train.commands import diagnosing, train_screen
from jaxclip.train.commands.keeper import Keeper
from jaxclip.train.commands.train_screen import Screen
from jaxclip.train.config import config_file, presets
from jaxclip.train.config.presets import Config
from jaxclip.train.data import Data
from jaxclip.train.errors import InterruptError, RunError, UserError
from jaxclip.train.recording import history, metrics_file, resuming, strict_json
from jaxclip.train.recording.checkpoints import Checkpoints, Position
from jaxclip.train.recording.history import History
from jaxclip.train.recording.metrics_file import MetricsFile
from jaxclip.train.recording.run_folder import RunFolder
from jaxclip.train.recording.tensorboard_events import TensorBoardEvents
from jaxclip.train.reporting import figures, layer_figure, terminal
from jaxclip.train.training import kernel_norms, loop, nonfinite, processes
from jaxclip.train.training.blocks import Part
from jaxclip.train.training.kernel_norms import Kernel
from jaxclip.train.training.loop import Epoch, Run
from jaxclip.train.words import count


class _Job(NamedTuple):
    """A run at the position where it begins or resumes, and where it is stored."""

    run: Run
    data: Data
    position: Position
    folder: RunFolder
    checkpoints: Checkpoints
    kernels: tuple[Kernel, ...]
    command: str
    begun: Part | None = None


def run(
    config: Config,
    data: Data,
    out: str,
    console: Console,
    *,
    resume: bool = False,
    tensorboard: bool = False,
    command: str = "",
    again: str = "",
) -> dict[str, Any]:
    """Trains a run into the folder `out`; returns the content of `summary.json`.

    The summary is also written if the run fails; its `status` says so. Of several processes, only
    process 0 prints and writes; the others return an empty dict.

    Args:
      config: the run.
      data: the images.
      out: the output folder.
      console: where to print.
      resume: continue from the folder's last checkpoint, if there is one; the run ends bit for bit
        as if it had not been interrupted.
      tensorboard: write event files too.
      command: the command that goes on after a signal.
      again: the command that starts the same run in another folder, to be changed by flags.
    """
    start = time.perf_counter()
    with terminal.doing(console, "building the network"):
        prepared = loop.prepare(presets.on(config, data.key), data)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(RunFolder(out, lock=processes.is_leader()))
        terminal.say(console, data.describe())
        train_screen.show_lesson(prepared.config, console)
        resume = resume and bool(resuming.names(folder.path))
        processes.wait_for_all()  # until all have looked
        if processes.is_leader() and not resume:
            set_earlier_run_aside(folder, console)
        processes.wait_for_all()  # until the folder is ready
        stack.enter_context(signals.graceful(lambda: f"go on with: {command}"))
        checkpoints = stack.enter_context(Checkpoints(folder.path, prepared.config))
        kernels = kernel_norms.kernels(prepared.config, prepared.state.params)
        job = _Job(prepared, data, Position(0, 0), folder, checkpoints, kernels, command)
        job = _resumed(job, console) if resume else job
        if processes.is_leader():
            return _train_and_summarize(job, console, tensorboard, start, again)
        for _ in _epochs(job, lambda part: None):
            pass
        return {}


def set_earlier_run_aside(folder: RunFolder, console: Console) -> None:
    """Moves the files of an earlier run into a folder below, and prints its name."""
    if earlier := folder.set_aside():
        terminal.say(console, f"note: {folder.path} held another run, which is now in {earlier}")


def _resumed(job: _Job, console: Console) -> _Job:
    """Returns a run at its newest checkpoint."""
    say = partial(terminal.say, console)
    saved = job.checkpoints.latest(job.run.state, say, aside=True)
    at, epochs = saved.position, job.run.config.epochs
    if at.epochs + (at.begun > 0) > epochs:
        problem = f"the run in {job.folder.path} has already trained {at.epochs}"
        raise UserError(f"--epochs={epochs}: {problem}")
    begun = Part(at.epochs, at.begun, saved.state, (saved.telemetry,), saved.seconds)
    run = job.run._replace(state=saved.state)
    return job._replace(run=run, position=at, begun=begun if at.begun else None)


def _epochs(job: _Job, after_block: Callable[[Part], None]) -> Iterator[tuple[Epoch, dict]]:
    """Yields each epoch and its kernels' norms; then saves a checkpoint where one is due."""
    watch = kernel_norms.watch(job.kernels, job.run.strategy.jit)
    keeper = Keeper(job.run, job.folder, job.checkpoints, job.command)

    def between(part: Part) -> None:
        after_block(part)
        keeper.after_block(part)

    first = job.position.epochs
    for epoch in loop.train(job.run, job.data, first, begun=job.begun, after_block=between):
        job.folder.check()
        yield epoch, kernel_norms.record(job.kernels, watch(epoch.state))
        if epoch.failure is None:
            keeper.after_epoch(epoch)


def _train_and_summarize(
    job: _Job, console: Console, tensorboard: bool, start: float, again: str
) -> dict[str, Any]:
    config, status = job.run.config, "stopped"
    path = job.folder.path / config_file.NAME
    strict_json.write(path, dataclasses.asdict(config), exact=True)
    screen = Screen(job.run, job.folder.path, console)
    try:
        _train(job, screen, tensorboard)
    except BaseException as error:
        status = "interrupted" if isinstance(error, InterruptError | KeyboardInterrupt) else status
        status = "non-finite loss" if isinstance(error, nonfinite.NonFiniteLossError) else status
        with contextlib.suppress(RunError, OSError):  # the first error is the one to report
            _summarize(job, status, start, console)
        raise
    summary, past = _summarize(job, "finished", start, console)
    if past.epochs:
        screen.finish(summary, past, job.kernels, again)
    return summary


def _summarize(
    job: _Job, status: str, start: float, console: Console
) -> tuple[dict[str, Any], History]:
    """Writes `summary.json` and the figures from the records of the run."""
    job.folder.check()
    past = history.read(job.folder.path)
    if past.damaged:
        lines = count(past.damaged, "damaged line")
        terminal.say(console, f"note: {lines} of {metrics_file.NAME} left out")
    past.name = job.run.config.preset
    summary = {"status": status, "preset": past.name, "data": job.data.name}
    summary |= {"epochs": len(past.epochs)}
    found = None
    if past.epochs:
        found = diagnosing.of_run(past, job.run.config, job.data)
        summary |= _scores(past) | {"findings": found.findings}
    summary |= {"damaged_lines": past.damaged, "seconds": time.perf_counter() - start}
    strict_json.write(job.folder.path / "summary.json", summary)
    if found is not None:
        with terminal.doing(console, "drawing figures"):
            _draw(job, past, found)
    return summary, past


def _train(job: _Job, screen: Screen, tensorboard: bool) -> None:
    """Trains all epochs that are left, and records and prints each."""
    config, position = job.run.config, job.position
    events = TensorBoardEvents(job.folder.path, position.steps) if tensorboard else None
    with MetricsFile(job.folder.path, events) as metrics, screen.training(position):
        metrics.write(_first_record(job))
        for epoch, norms in _epochs(job, screen.after_block):
            metrics.write_epoch(epoch, config.log_every, norms)
            screen.after_epoch(epoch)
    job.checkpoints.wait()


def _first_record(job: _Job) -> dict[str, Any]:
    if job.position.steps:
        return {"kind": "resume", "epoch": job.position.epochs, "step": job.position.steps}
    settings = dataclasses.asdict(job.run.config)
    return {"kind": "run", **settings, "data": job.data.name, "source": job.data.source}


def _scores(past: History) -> dict[str, Any]:
    """Returns the last epoch's scores."""
    return {k: v for k, v in past.epochs[-1].items() if k not in ("kind", "epoch", "seconds")}


def _draw(job: _Job, past: History, found: Diagnosis) -> None:
    folder = job.folder.path
    figures.run(past, clips=bool(job.run.config.clip), path=folder / "run.png")
    figures.weights(past, job.kernels, path=folder / "weights.png")
    layer_figure.draw(past, found, folder / "layers.png")
