"""Keeps a run: saves its checkpoints when they are due, and ends it when a signal asks for it."""

import time

from jaxclip.train import signals
from jaxclip.train.errors import InterruptError
from jaxclip.train.recording.checkpoints import Checkpoint, Checkpoints, Position
from jaxclip.train.recording.run_folder import RunFolder
from jaxclip.train.training import processes
from jaxclip.train.training.blocks import Part
from jaxclip.train.training.loop import Epoch, Run

CHECKPOINT_SECONDS = 60.0  # of training, at most from one checkpoint to the next


class Keeper:
    """Called after each block of steps and each epoch of a run."""

    def __init__(self, run: Run, folder: RunFolder, checkpoints: Checkpoints, command: str):
        """Begins with a run; `command` goes on with it after a signal."""
        self._run, self._folder, self._checkpoints = run, folder, checkpoints
        self._command = command
        self._saved = time.monotonic()

    def after_block(self, part: Part) -> None:
        """Saves a checkpoint within an epoch if the last one is old or a signal ends the run.

        Raises:
          RunError: if the run's folder was removed, or a checkpoint could not be written.
          InterruptError: if a signal ends the run.
        """
        self._folder.check()
        self._checkpoints.raise_failure()
        stop = _signal()
        is_old = time.monotonic() - self._saved >= CHECKPOINT_SECONDS
        is_old = not processes.smallest(not is_old)  # one process is enough
        steps = part.number * self._run.steps_per_epoch + part.steps
        at = Position(part.number, steps, part.steps)
        if self._run.config.checkpoint_every and (is_old or stop):
            self._save(Checkpoint(part.state, at, part.telemetry, part.seconds))
        if stop:
            self._end(stop, at)

    def after_epoch(self, epoch: Epoch) -> None:
        """Saves a checkpoint every few epochs, after the last one, and before a signal's end.

        Raises:
          RunError: if a checkpoint could not be written.
          InterruptError: if a signal ends the run.
        """
        config, done = self._run.config, epoch.number + 1
        stop, every = _signal(), config.checkpoint_every
        at = Position(done, done * self._run.steps_per_epoch)
        if every and (done % every == 0 or done == config.epochs or stop):
            self._save(Checkpoint(epoch.state, at))
        if stop and done < config.epochs:
            self._end(stop, at)

    def _save(self, checkpoint: Checkpoint) -> None:
        self._checkpoints.save(checkpoint)
        self._saved = time.monotonic()

    def _end(self, number: int, at: Position) -> None:
        self._checkpoints.wait()
        kept = self._run.config.checkpoint_every
        again = "go on with" if kept else "no checkpoint; start again with"
        where = f"after {at.epochs} epochs" + (f" and {at.begun} steps" if at.begun else "")
        text = f"ended by {signals.describe(number)} {where}; {again}: {self._command}"
        raise InterruptError(text, number)


def _signal() -> int:
    """Returns the signal that asks the run to end, in any of its processes; 0 without."""
    return -processes.smallest(-(signals.requested() or 0))
