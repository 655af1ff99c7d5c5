"""Signals: the first ends a run with a checkpoint, the second at once; never a traceback."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jaxclip.train import cli, signals
from jaxclip.train.commands import keeper
from jaxclip.train.recording import resuming
from jaxclip.train.training import blocks
from tests.train import runs

SHORT = ["train", "explode", *runs.SMALL[:-1], "64", "--log-every", "3", "--epochs", "2", "--out"]
NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True, scope="module")
def heard():
    """A program that a test starts hears all signals, also where the tests run under nohup."""
    ignored = [n for n in NUMBERS if signal.getsignal(n) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


class _Ended(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def ended(monkeypatch):
    def end(code):
        raise _Ended(code)

    monkeypatch.setattr(os, "_exit", end)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_is_noted_the_second_ends(number, ended, capfd):
    with signals.graceful(lambda: "go on"):
        signals.request(number)
        assert signals.requested() == number
        with pytest.raises(_Ended, match=str(128 + number)):
            signals.request(number)
    assert signals.requested() is None
    said = capfd.readouterr().err
    assert said.startswith("jaxclip: ended by SIG")
    assert said.endswith("; go on\n")


@pytest.mark.parametrize("number", NUMBERS)
def test_outside_a_run_the_first_ends(number, ended, capfd):
    with pytest.raises(_Ended, match=str(128 + number)):
        signals.request(number)
    name = signal.Signals(number).name
    assert capfd.readouterr().err == f"jaxclip: ended by {name}; the same command starts it again\n"


PROGRAM = """
import time, jaxclip_signals as signals
signals.install()
print(flush=True)
{body}
"""
WAITING = "time.sleep(20)"
GRACEFUL = """
signals.SECONDS = 0.2
with signals.graceful(lambda: "go on"):
    print(flush=True)
    time.sleep(20)
"""


def program(body, tmp_path):
    """A process that runs `body` with the module `signals` alone, and has begun."""
    with open(signals.__file__) as source:
        (tmp_path / "jaxclip_signals.py").write_text(source.read())
    (tmp_path / "program.py").write_text(PROGRAM.format(body=body))
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "program.py"], cwd=tmp_path, stdout=pipe, stderr=pipe, text=True
    )
    for _ in range(body.count("print") + 1):
        process.stdout.readline()
    return process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "body", "said"),
    [
        (signal.SIGINT, WAITING, "the same command"),
        (signal.SIGTERM, GRACEFUL, "go on"),
        (signal.SIGHUP, GRACEFUL, "go on"),
    ],
)
def test_a_waiting_program_ends(number, body, said, tmp_path):
    process = program(body, tmp_path)
    process.send_signal(number)
    _, error = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert error.startswith(f"jaxclip: ended by {signal.Signals(number).name}; {said}")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_two_signals_end_a_graceful_program_at_once(tmp_path):
    process = program(GRACEFUL.replace("0.2", "20"), tmp_path)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=10)
    assert process.returncode == 130
    assert error == "jaxclip: ended by SIGINT; go on\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "code"), [("signals.exit_with(3)", 3), ("1 / 0", 1), ("raise SystemExit(0)", 1)]
)
def test_exit_code_of_the_program(body, code, tmp_path):
    process = program(body, tmp_path)
    process.communicate(timeout=10)
    assert process.returncode == code


@pytest.mark.slow
def test_a_signal_that_is_ignored_stays_so(tmp_path):
    ignoring = "signals.signal.signal(1, signals.signal.SIG_IGN)\nsignals.handle()\n"
    process = program(f"{ignoring}print(flush=True)\n{WAITING}", tmp_path)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.kill()
    process.communicate()


@pytest.fixture
def short_blocks(monkeypatch):
    """Every block is a step."""
    monkeypatch.setattr(blocks, "SECONDS", 0.0)


def ended_in_block(number, count, out, monkeypatch):
    """Sends a signal to a run of 22 steps an epoch before the end of its block `count`."""
    seen, original = [], keeper.Keeper.after_block

    def after_block(self, part):
        seen.append(part.steps)
        if len(seen) == count:
            signals.request(number)
        original(self, part)

    with monkeypatch.context() as patch:
        patch.setattr(keeper.Keeper, "after_block", after_block)
        return cli.main([*SHORT, str(out)]), seen


@pytest.mark.slow
def test_a_run_ended_within_an_epoch_goes_on_bit_for_bit(
    tmp_path, capsys, monkeypatch, short_blocks
):
    runs.train(*SHORT, str(tmp_path / "whole"))
    capsys.readouterr()
    out = tmp_path / "o u[t"
    for number, count in ((signal.SIGTERM, 7), (signal.SIGHUP, 5)):
        code, seen = ended_in_block(number, count, out, monkeypatch)
        assert code == 128 + number
        said = capsys.readouterr().err
        command = f"jaxclip train --resume --out '{out}'"
        name = signal.Signals(number).name
        assert said == (
            f"jaxclip: ended by {name} after 0 epochs and {seen[-1]} steps; go on with: {command}\n"
        )
        assert runs.summary(out)["status"] == "interrupted"
        assert resuming.names(out)[-1] == f"0+{seen[-1]}"
    runs.train("train", "--resume", "--out", str(out))
    assert f"resuming after 0 of 2 epochs and {seen[-1]} steps" in capsys.readouterr().out
    runs.assert_same_end(tmp_path / "whole", out)


@pytest.mark.slow
def test_a_checkpoint_within_a_long_epoch(tmp_path, monkeypatch, short_blocks):
    monkeypatch.setattr(keeper, "CHECKPOINT_SECONDS", 0.0)
    saved, save = [], keeper.Checkpoints.save
    monkeypatch.setattr(
        keeper.Checkpoints, "save", lambda self, c: (saved.append(c.position), save(self, c))
    )
    runs.train(*SHORT, str(tmp_path))
    assert len(saved) == 44
    assert [at.steps for at in saved] == [*range(1, 45)]
    assert [at.begun for at in saved] == [*range(1, 22), 0] * 2


def is_importing(process):
    """Whether the program has come to the package's imports; Python's own start is not ours."""
    return "jaxlib" in Path(f"/proc/{process.pid}/maps").read_text()


class Waiting(threading.Thread):
    """Adds up how long a process waits for a processor: that time is the machine's, not its own."""

    def __init__(self, process):
        super().__init__(daemon=True)
        self.path, self.seconds = Path(f"/proc/{process.pid}/schedstat"), 0.0
        self.before = self.read()
        self.start()

    def read(self):
        return int(self.path.read_text().split()[1]) / 1e9

    def run(self):
        with contextlib.suppress(OSError, IndexError):
            while True:
                self.seconds = self.read() - self.before
                time.sleep(0.02)


def start(out):
    command = [sys.executable, "-m", "jaxclip", *SHORT, str(out), "--epochs", "100000"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, bufsize=1)


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
def test_the_program_ends_in_time_at_any_moment(number, tmp_path):
    """While it imports, while it reads data and compiles, and while it trains."""
    moments, lines = np.random.default_rng(number), ("", "data: ", "epoch 2/")
    lines = runs.tries((lines[NUMBERS.index(number)],), lines)
    for i, line in enumerate(lines * runs.tries(1, 15)):
        out = tmp_path / str(i)
        process = start(out)
        while not (line or is_importing(process)):
            time.sleep(0.01)
        while line and not process.stdout.readline().startswith(line):
            assert process.poll() is None
        time.sleep(moments.uniform(0, 1 if line else 0.2))
        sent, waiting = time.monotonic(), Waiting(process)
        process.send_signal(number)
        try:
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
        assert time.monotonic() - sent - waiting.seconds < signals.SECONDS + 2
        assert process.returncode == 128 + number, error
        assert error.startswith(f"jaxclip: ended by {signal.Signals(number).name}")
        assert error.count("\n") == 1
        if line.startswith("epoch"):
            assert resuming.names(out)
            assert f"go on with: jaxclip train --resume --out {out}" in error
            assert runs.summary(out)["status"] == "interrupted"
