"""A run killed at random moments and resumed ends bit for bit as an undisturbed one."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.train import runs

pytestmark = pytest.mark.slow  # a dozen processes

KILLS, EPOCHS = 3, 45


def start(out, *more):
    command = [*runs.REMEMBERING, "--epochs", str(EPOCHS), "--out", str(out), *more]
    return subprocess.Popen(
        [sys.executable, "-m", "jaxclip", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def epochs(out):
    path = out / "metrics.jsonl"
    return path.read_text().count('"kind": "epoch"') if path.exists() else 0


def has_checkpoint(out):
    return any(path.name.isdigit() for path in (out / "checkpoints").glob("*"))


def test_killed_at_random_moments(tmp_path):
    undisturbed = start(tmp_path / "whole")
    said, _ = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, said
    out, moments = tmp_path / "killed", np.random.default_rng(0)
    for _ in range(KILLS):
        process = start(out, *["--resume"] * has_checkpoint(out))
        before = epochs(out)
        while not (has_checkpoint(out) and epochs(out) > before) and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.5))  # it trains, records and writes checkpoints
        assert process.poll() is None, process.communicate()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    found = runs.records_that_parse(out)
    resumed = [r["epoch"] for r in found if r["kind"] == "resume"]
    assert len(resumed) == KILLS - 1
    assert max(r["epoch"] for r in found if r["kind"] == "epoch") < EPOCHS - 1
    last = start(out, "--resume")
    said, _ = last.communicate(timeout=300)
    assert last.returncode == 0, said
    assert "resuming after" in said
    runs.assert_same_end(tmp_path / "whole", out)
