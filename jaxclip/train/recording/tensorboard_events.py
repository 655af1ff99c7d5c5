"""TensorBoard event files, for `tensorboard --logdir OUT`: tensorboardX needs no TensorFlow."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

# It warns of every number that is not finite: the run says that itself, once.
logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)

_NOT_SCALARS = ("kind", "epoch", "step", "steps")


class Events:
    """Writes the numbers of step and epoch records, by step, beside `metrics.jsonl`."""

    def __init__(self, folder: Path, first_step: int = 0):
        """Opens a new event file; what earlier ones have from `first_step` on no longer counts."""
        self._writer = SummaryWriter(
            str(folder / "tensorboard"), purge_step=first_step or None, flush_secs=10
        )

    def write_all(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes some records: those of an epoch at its last step, in a group of their own."""
        for one in records:
            if one["kind"] not in ("step", "epoch"):
                continue
            at_end = one["kind"] == "epoch"
            prefix, step = ("epoch/", one["steps"] - 1) if at_end else ("", one["step"])
            for key, value in one.items():
                if key not in _NOT_SCALARS and value is not None:
                    self._writer.add_scalar(prefix + key, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()
