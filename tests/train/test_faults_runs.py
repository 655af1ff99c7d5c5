"""Faults while a whole run goes on: full disks, damaged records, removed folders, two at once."""

import gc
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxclip.train import cli
from jaxclip.train.commands.keeper import Keeper
from jaxclip.train.recording import history
from jaxclip.train.reporting import figures
from jaxclip.train.reporting.epoch_table import EpochTable
from tests.train import runs

pytestmark = pytest.mark.slow
RUN = ["train", "explode", *runs.SMALL, "--log-every", "1", "--epochs"]


def one_line(capsys):
    said = capsys.readouterr().err
    assert said.startswith("jaxclip: error: ")
    assert said.count("\n") == 1
    return said


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of six epochs."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    runs.train(*RUN, "6", "--out", str(out))
    return out


def test_a_limit_on_the_size_of_files_ends_a_run_that_goes_on_without(whole, tmp_path, capsys):
    for i, limit in enumerate(np.geomspace(50, 40_000, runs.tries(2, 25)).astype(int).tolist()):
        old, out = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / str(i)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
        began = time.monotonic()
        try:
            code = cli.main([*RUN, "6", "--out", str(out), *["--tensorboard"] * (i % 2)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert code == 1, limit
        assert "File too large" in one_line(capsys)
        assert time.monotonic() - began < 60  # of which most is compilation
        runs.train(*RUN, "6", "--resume", "--out", str(out))
        runs.assert_same_end(whole, out)


def test_a_damaged_line_does_not_hinder_the_end_of_a_run(whole, tmp_path, capsys):
    drawn, content = np.random.default_rng(0), (whole / "metrics.jsonl").read_bytes()
    for i in range(runs.tries(2, 24)):
        out = shutil.copytree(whole, tmp_path / str(i))
        at = int(drawn.integers(len(content) - 40))
        end = at + int(drawn.integers(1, 40))
        noise = (b"", drawn.bytes(end - at), b"[" * 5_000, b"9" * 400)[i % 4]
        (out / "metrics.jsonl").write_bytes(content[:at] + noise + content[end:])
        runs.train("train", "--resume", "--out", str(out))
        summary, past = runs.summary(out), history.read(out)
        assert summary["status"] == "finished"
        assert summary["damaged_lines"] == past.damaged
        assert ("damaged line" in capsys.readouterr().out) == (past.damaged > 0)
        assert len(past.steps) >= 12 - 2


@pytest.mark.parametrize(
    ("where", "name"), [(EpochTable, "line"), (Keeper, "after_epoch"), (figures, "weights")]
)
def test_a_folder_removed_while_a_run_writes_ends_it(where, name, tmp_path, capsys, monkeypatch):
    original = getattr(where, name)

    def remove(*arguments, **options):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return original(*arguments, **options)

    monkeypatch.setattr(where, name, remove)
    assert cli.main([*RUN, "3", "--out", str(tmp_path / "out")]) == 1
    assert f"{tmp_path}/out" in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_two_runs_into_one_folder(tmp_path):
    """One of them is refused, the other one is whole."""
    for i in range(runs.tries(1, 7)):
        out, pipe = tmp_path / str(i), subprocess.PIPE
        command = [sys.executable, "-m", "jaxclip", *RUN, "100000", "--out", str(out), "--seed"]
        both = [
            subprocess.Popen([*command, seed], stdout=pipe, stderr=pipe, text=True)
            for seed in ("1", "2")
        ]
        while all(process.poll() is None for process in both):
            time.sleep(0.05)
        other, one = sorted(both, key=lambda process: process.poll() is None)
        _, said = other.communicate()
        assert other.returncode == 2
        assert f"another run (process {one.pid}) writes into this folder" in said
        while not list(out.glob("checkpoints/*")):
            time.sleep(0.05)
        one.send_signal(signal.SIGTERM)
        _, said = one.communicate()
        assert one.returncode == 128 + signal.SIGTERM
        runs.last_state(out)  # checks that the checkpoint is of the run in config.json
        assert not list(out.glob("earlier-*"))


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_fifty_epochs_do_not_grow(tmp_path, monkeypatch):
    """With a checkpoint and all records after each; in MiB."""
    sizes, epochs, line = [], itertools.count(1), EpochTable.line

    def measured(*arguments, **options):
        if next(epochs) % 5 == 0:
            gc.collect()
            sizes.append(resident())
        return line(*arguments, **options)

    monkeypatch.setattr(EpochTable, "line", measured)
    runs.train(*RUN, "60", "--checkpoint-every", "1", "--tensorboard", "--out", str(tmp_path))
    assert len(sizes) == 12
    assert max(sizes[10:]) - max(sizes[1:3]) < 4, sizes
