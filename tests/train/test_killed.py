"""A run killed at random moments and resumed ends bit for bit as an undisturbed one."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.train import runs

pytestmark = pytest.mark.slow

KILLS = runs.tries(2, 25)
RUN = [*runs.REMEMBERING, "--epochs", str(40 * KILLS), "--out"]


def start(out, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "jaxclip", *RUN, str(out), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def epochs(out):
    path = out / "metrics.jsonl"
    return path.read_text().count('"kind": "epoch"') if path.exists() else 0


def has_checkpoint(out):
    return any(path.name.isdigit() for path in (out / "checkpoints").glob("*"))


def test_killed_at_random_moments(tmp_path, capsys):
    runs.train(*RUN, str(tmp_path / "whole"))
    out, moments = tmp_path / "killed", np.random.default_rng(0)
    for _ in range(KILLS):
        process = start(out, *["--resume"] * has_checkpoint(out))
        before = epochs(out)
        while not (has_checkpoint(out) and epochs(out) > before) and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.3))  # it trains, records and writes checkpoints
        assert process.poll() is None, process.communicate()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    found = runs.records_that_parse(out)
    resumed = [r["epoch"] for r in found if r["kind"] == "resume"]
    assert len(resumed) == KILLS - 1
    assert max(r["epoch"] for r in found if r["kind"] == "epoch") < 40 * KILLS - 1
    runs.train(*RUN, str(out), "--resume")
    assert "resuming after" in capsys.readouterr().out
    runs.assert_same_end(tmp_path / "whole", out)
