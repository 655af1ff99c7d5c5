"""Writes event files for `tensorboard --logdir OUT`, without TensorFlow.

tensorboardX has the messages and the checksum. Its own writer is left out: a thread, which a full
disk ends with a traceback, and for which the run then waits forever.
"""

import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import masked_crc32c

from jaxclip.train.errors import RunError
from jaxclip.train.recording import files

_pb: Any = event_pb2
_summary_pb: Any = summary_pb2
_NAME = "events.out.tfevents."
_NOT_SCALARS = ("kind", "epoch", "step", "steps")


class TensorBoardEvents:
    """Writes the numbers of step and epoch records as scalars."""

    def __init__(self, folder: Path, first_step: int = 0):
        """Opens a new event file, which replaces earlier files' values from `first_step` on."""
        folder = folder / "tensorboard"
        if folder.is_symlink():
            raise RunError(f"{folder}: is a symbolic link, not written to")
        with files.explained(folder):
            folder.mkdir(exist_ok=True)
            # TensorBoard reads files in the order of their names, whatever the clock showed.
            earlier = [int(path.name.split(".")[3]) for path in folder.glob(_NAME + "[0-9]*.*")]
        second = max(int(time.time()), 1 + max(earlier, default=0))
        self._path = folder / f"{_NAME}{second}.{socket.gethostname()}"
        with files.explained(self._path):
            self._file = files.open_for(self._path, os.O_WRONLY | os.O_APPEND)
        first = [_pb.Event(wall_time=time.time(), file_version="brain.Event:2")]
        if first_step:
            start = _pb.SessionLog(status=_pb.SessionLog.START)
            first.append(_pb.Event(wall_time=time.time(), step=first_step, session_log=start))
        try:
            self._append(*first)
        except RunError:
            self.close()
            raise

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes records; an epoch's numbers go to its last step, under `epoch/`.

        Raises:
          RunError: if they cannot be written; the file ends with a whole event.
        """
        kept = [record for record in records if record["kind"] in ("step", "epoch")]
        self._append(*map(_event, kept))

    def _append(self, *events: Any) -> None:
        with files.explained(self._path):
            content = b"".join(_framed(event.SerializeToString()) for event in events)
            files.append(self._file, content)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def _event(record: Mapping[str, Any]) -> Any:
    is_epoch = record["kind"] == "epoch"
    prefix, step = ("epoch/", record["steps"] - 1) if is_epoch else ("", record["step"])
    values = [
        _summary_pb.Summary.Value(tag=prefix + key, simple_value=float(value))
        for key, value in record.items()
        if key not in _NOT_SCALARS and value is not None
    ]
    summary = _summary_pb.Summary(value=values)
    return _pb.Event(wall_time=time.time(), step=step, summary=summary)


def _framed(message: bytes) -> bytes:
    """Returns a record of TensorFlow's `record_writer.h`: length, checksum, message, checksum."""
    length = struct.pack("<Q", len(message))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, message))
    return length + next(sums) + message + next(sums)
