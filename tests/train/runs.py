"""Small runs of the program, and readers of their output folders."""

import contextlib
import json
import os

import jax
import numpy as np
import pytest

from jaxclip.train import cli, data
from jaxclip.train.config import config_file
from jaxclip.train.recording import checkpoints
from jaxclip.train.training import loop

SMALL = ["--dataset", "digits", "--sizes", "8", "--batch-size", "512"]
# All kinds of state: moments, averages, a learned threshold, a guard, random numbers, an order.
REMEMBERING = [
    *("train", "value-clip", "--dataset", "digits", "--sizes", "8", "--batch-size", "256"),
    *("--optimizer", "adam", "--clip", "autoclip=50,window=8", "--batch-norm"),
    *("--dropout", "0.2", "--schedule", "cosine", "--guard", "skip_spikes,window=8,min_history=4"),
    *("--project", "max_norm=1.5", "--learning-rate", "0.01", "--log-every", "2"),
    *("--checkpoint-every", "1"),
]


def tries(few, all_of_them):
    """How often a fault is tried: JAXCLIP_TRIES=full takes many minutes."""
    return all_of_them if os.environ.get("JAXCLIP_TRIES") == "full" else few


def strictly(line):
    """Parses strict JSON, without NaN and Infinity."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(line, parse_constant=refuse)


def records(folder):
    return [strictly(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def summary(folder):
    return strictly((folder / "summary.json").read_text())


def train(*arguments):
    assert cli.main(list(arguments)) == 0


@contextlib.contextmanager
def interrupted_in(stop):
    """Interrupts training at the start of epoch `stop`."""
    original = loop.batch_indices

    def batch_indices(config, count, epoch):
        if epoch == stop:
            raise KeyboardInterrupt
        return original(config, count, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "batch_indices", batch_indices)
        yield


def last_state(folder):
    """The newest checkpoint's arrays, by path, and its position."""
    config = config_file.config(folder / "config.json")
    run = loop.prepare(config, data.load(config.dataset))
    with checkpoints.Checkpoints(folder, config) as kept:
        state, position, *_ = kept.latest(run.state, print)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}, position


def assert_same_end(one, other):
    """Asserts equal states, records and scores, bit for bit; a step may have several records."""
    (first, at), (second, also) = last_state(one), last_state(other)
    assert at == also
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.tobytes() == second[name].tobytes(), name
    assert last_records(one) == last_records(other)
    same = ("test_accuracy", "test_loss", "train_loss", "epochs", "findings", "status")
    assert {k: summary(one)[k] for k in same} == {k: summary(other)[k] for k in same}


def last_records(folder):
    """The last record of each step and epoch, without durations."""
    last = {}
    for line in records(folder):
        if line["kind"] in ("step", "epoch"):
            line.pop("seconds", None)
            last[line["kind"], line.get("step", line["epoch"])] = line
    return last


def records_that_parse(folder):
    """The complete records of a run that may have been killed while writing."""
    whole, _, _ = (folder / "metrics.jsonl").read_text().rpartition("\n")
    return [strictly(line) for line in whole.splitlines()]
