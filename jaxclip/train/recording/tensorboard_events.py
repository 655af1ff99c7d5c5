"""Writes event files for `tensorboard --logdir OUT` by tensorboardX, without TensorFlow."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

# tensorboardX warns of every non-finite number; the run itself reports them once.
logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)

_NOT_SCALARS = ("kind", "epoch", "step", "steps")


class TensorBoardEvents:
    """Writes the numbers of step and epoch records as scalars."""

    def __init__(self, folder: Path, first_step: int = 0):
        """Opens a new event file, which replaces earlier files' values from `first_step` on."""
        self._writer = SummaryWriter(
            str(folder / "tensorboard"), purge_step=first_step or None, flush_secs=10
        )

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes records; an epoch's numbers go to its last step, under `epoch/`."""
        for record in records:
            if record["kind"] not in ("step", "epoch"):
                continue
            is_epoch = record["kind"] == "epoch"
            prefix, step = ("epoch/", record["steps"] - 1) if is_epoch else ("", record["step"])
            for key, value in record.items():
                if key not in _NOT_SCALARS and value is not None:
                    self._writer.add_scalar(prefix + key, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()
