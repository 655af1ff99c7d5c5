"""The screen of `jaxclip train`: the table of epochs, a progress bar, the summary."""

import contextlib
import dataclasses
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxclip.train.config import presets
from jaxclip.train.config.presets import Config
from jaxclip.train.recording import metrics_file
from jaxclip.train.recording.checkpoints import Position
from jaxclip.train.recording.history import History
from jaxclip.train.reporting import epoch_table, terminal
from jaxclip.train.training import nonfinite, tensor_norms
from jaxclip.train.training.blocks import Part
from jaxclip.train.training.kernel_norms import Kernel
from jaxclip.train.training.loop import Epoch, Run
from jaxclip.train.words import count

_UNTOLD = ("dataset", "epochs", "seed", "checkpoint_every", "parallel")


def show_lesson(config: Config, console: Console) -> None:
    """Prints what is to be seen in a preset's run, if no flag has made it another run."""
    preset = presets.get(config.preset, config.dataset)
    same = {field: getattr(preset, field) for field in _UNTOLD}
    if dataclasses.replace(config, **same) == preset:
        terminal.say(console, f"{config.preset}: {presets.LESSONS[config.preset]}")


class Screen:
    """Prints a run as it trains."""

    def __init__(self, run: Run, folder: Path, console: Console):
        """Begins with a run and its folder."""
        self._run, self._config, self._folder, self._console = run, run.config, folder, console
        self._bar = terminal.progress(console)
        self._task = self._bar.add_task("compiling", total=self._config.epochs)
        clips, constant = bool(self._config.clip), self._config.schedule == "constant"
        self._table = epoch_table.EpochTable(
            console, self._config.epochs, clips=clips, constant_rate=constant
        )
        self._is_empty = True

    @contextlib.contextmanager
    def training(self, position: Position) -> Generator[None, None, None]:
        """Shows the bar while a run trains from a position on."""
        if position.steps:
            more = f" and {count(position.begun, 'step')}" if position.begun else ""
            done = f"{position.epochs} of {count(self._config.epochs, 'epoch')}"
            self._say(f"resuming after {done}{more}")
        self._bar.update(self._task, completed=position.epochs)
        with self._bar:
            yield

    def after_block(self, part: Part) -> None:
        """Moves the bar within an epoch."""
        self._move(part.number, part.number + part.steps / self._run.steps_per_epoch)

    def after_epoch(self, epoch: Epoch) -> None:
        """Prints an epoch."""
        config = self._config
        if config.report == "tensors" and epoch.number == 0:
            self._show_second_step(epoch)
        if self._is_empty:
            self._show_plain("", *self._table.head())
            self._is_empty = False
        self._show_plain(self._table.line(epoch.number, metrics_file.scores(epoch)))
        if config.report == "losses":
            recorded = epoch.telemetry["loss"][:: config.log_every]
            self._say(epoch_table.losses(epoch.first_step, config.log_every, recorded.tolist()))
        problem = nonfinite.failure(epoch.first_step, epoch.telemetry)
        is_new = epoch.number == 0 or np.isfinite(epoch.telemetry["loss"][0])
        if problem and is_new and config.allow_nonfinite:
            stop = "to stop it there, give --no-allow-nonfinite"
            self._say(f"note: {problem}; training goes on; {stop}")
        self._move(min(epoch.number + 1, config.epochs - 1), epoch.number + 1)

    def finish(
        self, summary: dict[str, Any], past: History, kernels: Sequence[Kernel], again: str
    ) -> None:
        """Prints the summary of a run, the findings, and the command to go on with."""
        rows = {
            **test_rows(summary),
            "largest gradient norm, last epoch": terminal.number(summary["grad_norm_max"]),
            **_unit_norms(past.epochs[-1], kernels),
            "epochs": str(summary["epochs"]),
            "seconds": f"{summary['seconds']:.1f}",
            "written to": str(self._folder),
        }
        terminal.records(self._console, f"{summary['preset']} on {summary['data']}", rows)
        self._say("")
        self._say(_steps_judged(past, self._run.steps_per_epoch * len(past.epochs)))
        settings = dataclasses.asdict(self._config)
        for sentence in summary["findings"]:
            self._say(f"- {terminal.as_flag(sentence, settings)}")
        advised = [flag for x in summary["findings"] for flag in terminal.flags_for(x, settings)]
        usual = "--clip none" if self._config.clip else "--clip global_norm=1"
        usual = (
            usual
            if np.isfinite(past.loss[-1])
            else f"--learning-rate {self._config.learning_rate / 10:.3g}"
        )
        if again:
            terminal.say_next(self._console, f"{again} {[*advised, usual][0]}")

    def _show_second_step(self, epoch: Epoch) -> None:
        """Prints each tensor's norm before and after clipping, as the tutorial does."""
        names, row = tensor_norms.names(epoch.telemetry), min(1, len(epoch.telemetry["loss"]) - 1)
        columns = []
        for monitor in ("grads", "clipped"):
            norms = tensor_norms.norms(epoch.telemetry, monitor, names)[row].astype(np.float64)
            columns.append([*norms, np.sqrt(np.sum(np.square(norms)))])
        rows = zip([*names, "global"], *columns, strict=True)
        cells = [[name, *map(_two_digits, pair)] for name, *pair in rows]
        title = "gradient norms at step 1, the second" if row else "gradient norms at step 0"
        self._say(title)
        terminal.table(self._console, ("tensor", "before clipping", "after clipping"), cells)

    def _move(self, number: int, completed: float) -> None:
        name = epoch_table.name(number, self._config.epochs)
        self._bar.update(self._task, description=name, completed=completed)

    def _say(self, text: str) -> None:
        terminal.say(self._console, text)

    def _show_plain(self, *lines: str) -> None:
        for line in lines:
            self._console.out(line, highlight=False)


def test_rows(scores: dict[str, Any]) -> dict[str, str]:
    """Returns the records of the scores on the test images."""
    return {
        "test accuracy": terminal.percent(scores["test_accuracy"]),
        "test loss": terminal.number(scores["test_loss"]),
    }


def _two_digits(norm: float) -> str:
    return f"{norm:.2f}" if 0.01 <= norm < 1e4 else terminal.number(norm)


def _unit_norms(record: dict[str, Any], kernels: Sequence[Kernel]) -> dict[str, str]:
    """Returns a record for each kernel: the largest norm of its units, and its limit."""
    rows = {}
    for kernel in kernels:
        limit = "" if kernel.limit is None else f" (limit {kernel.limit:g})"
        value = terminal.number(record[f"weights/largest/{kernel.name}"])
        unit = "" if kernel.unit == "whole" else f"a {kernel.unit} of "
        rows[f"largest norm of {unit}{kernel.name}"] = value + limit
    if any(kernel.limit is not None for kernel in kernels):
        return {k: v if "limit" in v else f"{v} (no limit)" for k, v in rows.items()}
    return rows


def _steps_judged(past: History, steps: int) -> str:
    """Returns the steps that the findings speak of."""
    first, last = (int(past.steps[i]) for i in (0, -1))
    recorded = count(len(past.steps), "recorded step")
    ends = f"; rules are counted up to step {last}" if last < steps - 1 else ""
    return f"findings from {recorded} of {steps:,}, {first} to {last}{ends}:"
