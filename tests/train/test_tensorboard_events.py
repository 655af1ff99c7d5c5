"""TensorBoard's files, read by an independent reader, hold the numbers of `metrics.jsonl`."""

import collections
import errno
import os
import struct
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from jaxclip.train import cli
from jaxclip.train.errors import RunError
from jaxclip.train.recording import tensorboard_events
from tests.train import runs

COMMAND = ["train", "explode", *runs.SMALL, "--epochs", "3", "--log-every", "2"]
COMMAND += ["--checkpoint-every", "1"]
# A rate with more digits than a record holds: the run can still be resumed.
COMMAND += ["--guard", "skip_nonfinite", "--learning-rate", "0.33333333333333331"]
NOT_NUMBERS = ("kind", "epoch", "step", "steps")


def crc32c(data):
    """The CRC32C checksum, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def messages(path):
    """The records of a TFRecord file: length, its checksum, data, its checksum."""
    content, at = path.read_bytes(), 0
    while at < len(content):
        (length,), (check,) = (
            struct.unpack_from("<Q", content, at),
            struct.unpack_from("<I", content, at + 8),
        )
        assert check == masked(content[at : at + 8])
        data = content[at + 12 : at + 12 + length]
        assert struct.unpack_from("<I", content, at + 12 + length) == (masked(data),)
        yield event_pb2.Event.FromString(data)
        at += 16 + length
    assert at == len(content)


def scalars(folder):
    """Numbers by tag and step, as TensorBoard shows them: a restart removes later steps."""
    found = collections.defaultdict(dict)
    files = sorted((folder / "tensorboard").iterdir(), key=lambda p: (p.stat().st_mtime_ns, p.name))
    for path in files:
        for event in messages(path):
            if event.session_log.status == event_pb2.SessionLog.START:
                for steps in found.values():
                    for late in [step for step in steps if step >= event.step]:
                        del steps[late]
            for value in event.summary.value:
                found[value.tag][event.step] = value.simple_value
    return found


def written(folder):
    """The same numbers from `metrics.jsonl`, an epoch's at its last step."""
    found = collections.defaultdict(dict)
    for record in runs.records(folder):
        if record["kind"] in ("step", "epoch"):
            prefix, at = ("", record.get("step"))
            if record["kind"] == "epoch":
                prefix, at = ("epoch/", record["steps"] - 1)
            for key, value in record.items():
                if key not in NOT_NUMBERS and value is not None:
                    found[prefix + key][at] = float(value)
    return found


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for tag, steps in wanted.items():
        assert found[tag].keys() == steps.keys(), tag
        for step, value in steps.items():
            # A record has nine digits and an event is a float32: rounded twice or once.
            np.testing.assert_allclose(found[tag][step], value, rtol=1.2e-7, err_msg=tag)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A run resumed after a kill between the record and the checkpoint of its second epoch."""
    out = tmp_path_factory.mktemp("resumed")
    command = [*COMMAND, "--out", str(out), "--tensorboard"]
    with runs.interrupted_in(2):
        assert cli.main(command) == 130
    (out / "checkpoints" / "2").rename(out / "lost")
    (first,) = (out / "tensorboard").iterdir()
    before = first.read_bytes()
    runs.train(*command, "--resume")
    (second,) = set((out / "tensorboard").iterdir()) - {first}
    assert first.read_bytes() == before
    return out, first, second


@pytest.mark.slow
def test_numbers_equal_the_records(resumed):
    out, first, second = resumed
    found = scalars(out)
    assert_same(found, written(out))
    assert sorted(found["loss"]) == [0, 2, 4]
    assert sorted(found["epoch/test_accuracy"]) == [1, 3, 5]
    assert found["skip_nonfinite/skipped"] == {0: 0, 2: 0, 4: 0}
    # The second file replaces the steps of the first after the checkpoint.
    steps = [{event.step for event in messages(p) if event.summary.value} for p in (first, second)]
    assert steps == [{0, 1, 2, 3}, {2, 3, 4, 5}]
    starts = [
        e.step for e in messages(second) if e.session_log.status == event_pb2.SessionLog.START
    ]
    assert starts == [2]


def test_non_finite_numbers_are_written_without_warnings(tmp_path, caplog, capfd):
    writer = tensorboard_events.TensorBoardEvents(tmp_path)
    values = {"loss": float("nan"), "norm": float("inf"), "none": None, "flag": True}
    writer.write([{"kind": "run", "loss": 7.0}, {"kind": "step", "step": 5, **values}])
    writer.write([{"kind": "epoch", "epoch": 0, "steps": 6, "seconds": float("-inf")}])
    writer.close()
    found = scalars(tmp_path)
    assert set(found) == {"loss", "norm", "flag", "epoch/seconds"}
    assert np.isnan(found["loss"][5])
    assert (found["norm"], found["flag"]) == ({5: np.inf}, {5: 1})
    assert found["epoch/seconds"] == {5: -np.inf}
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def record(step):
    return {"kind": "step", "step": step, "loss": float(step)}


def test_a_full_disk_leaves_whole_events(tmp_path, monkeypatch):
    writer, write, threads = tensorboard_events.TensorBoardEvents(tmp_path), os.write, []

    def half(file, view):
        threads.append(threading.current_thread())
        if len(view) < 60:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, view[:-30])

    writer.write([record(1)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(RunError, match=r"tensorboard/events\..*No space left on device"):
            writer.write([record(step) for step in (2, 3)])
    writer.close()
    assert scalars(tmp_path) == {"loss": {1: 1.0}}
    assert set(threads) == {threading.main_thread()}


def test_a_clock_that_jumps_keeps_the_order_of_files(tmp_path, monkeypatch):
    """TensorBoard sorts them by name; a name is never used twice."""
    names = []
    for step, clock in enumerate((5e9, 5e9 - 3600, 5e9, 5e9 + 3600)):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        writer = tensorboard_events.TensorBoardEvents(tmp_path, step)
        writer.write([record(step)])
        writer.close()
        names += sorted({path.name for path in (tmp_path / "tensorboard").iterdir()} - {*names})
    assert len(names) == 4
    assert names == sorted(names)
    assert scalars(tmp_path) == {"loss": {step: float(step) for step in range(4)}}


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "tensorboard").symlink_to(tmp_path / "other")
    with pytest.raises(RunError, match="tensorboard: is a symbolic link, not written to"):
        tensorboard_events.TensorBoardEvents(tmp_path)
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.slow
def test_needs_no_tensorflow(tmp_path):
    code = """
        import runpy, sys

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("tensorflow", "tensorboard", "torch"):
                    raise ImportError(name)

        sys.meta_path.insert(0, Refuse())
        import pathlib
        writer = runpy.run_path(sys.argv[1])["TensorBoardEvents"](pathlib.Path(sys.argv[2]))
        writer.write([{"kind": "step", "step": 1, "loss": 0.5}])
        writer.close()
        assert not {"tensorflow", "torch"} & {name.split(".")[0] for name in sys.modules}
    """
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(code),
        tensorboard_events.__file__,
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert scalars(tmp_path) == {"loss": {1: 0.5}}
