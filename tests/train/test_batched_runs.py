"""Runs that share a program equal the same runs trained alone; which runs share one."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxclip.train.commands import compare
from jaxclip.train.config import presets
from jaxclip.train.training import batched_runs, loop, optimizer

BASE = presets.get("explode").override(
    {"sizes": (), "batch_size": 16, "epochs": 2, "shuffle": True}
)


def config(**changes):
    return dataclasses.replace(BASE, **changes)


def telemetry(epochs):
    return {k: np.concatenate([e.telemetry[k] for e in epochs]) for k in epochs[0].telemetry}


def alone(config, data):
    return list(loop.train(loop.prepare(config, data), data))


def shared(configs, data, *, at_once):
    found = [[] for _ in configs]
    for which, epoch in batched_runs.train(configs, data, at_once=at_once):
        found[which].append(epoch)
    return found


def assert_same(found, wanted):
    assert [e.number for e in found] == [e.number for e in wanted]
    assert [e.first_step for e in found] == [e.first_step for e in wanted]
    ours, theirs = telemetry(found), telemetry(wanted)
    assert ours.keys() == theirs.keys()
    for key, values in theirs.items():
        np.testing.assert_allclose(ours[key], values, rtol=2e-4, atol=1e-6, err_msg=key)
    for one, other in zip(found, wanted, strict=True):
        assert one.test.keys() == other.test.keys()
        assert one.test_loss == pytest.approx(other.test_loss, rel=1e-5)
        assert one.test_accuracy == pytest.approx(other.test_accuracy, abs=1.5 / 360)


CHAIN = ("global_norm=1", "value=0.01")
# Rates and thresholds far enough apart that a run with another one's numbers would differ. The
# second of three runs is lost.
CASES = {
    "a chain": (
        [
            {"learning_rate": 0.5, "clip": (*CHAIN, "norm=0.02")},
            {"learning_rate": 1e30, "clip": (*CHAIN, "norm=0.02")},
            {"learning_rate": 0.2, "clip": (*CHAIN, "norm=0.005"), "seed": 3},
        ],
        {
            "shuffle": False,
            "schedule": "polynomial",
            "end_learning_rate": 0.01,
            "power": 0.9,
            "decay_steps": 5,
        },
    ),
    "all that remembers": (
        [
            {"learning_rate": 0.5, "clip": ("global_norm=0.05",)},
            {"learning_rate": 0.1, "clip": ("global_norm=0.4",), "seed": 1},
        ],
        {
            "sizes": (6,),
            "loss": "cross_entropy",
            "schedule": "cosine",
            "optimizer": "momentum",
            "dropout": 0.2,
            "batch_norm": True,
            "guard": ("skip_spikes",),
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_each_run_equals_the_run_trained_alone(case, few_digits):
    """A lost run ends with its first epoch, its failure names the step; the others go on."""
    changes, common = CASES[case]
    configs = [config(**common | own) for own in changes]
    assert batched_runs.groups(configs) == [list(range(len(configs)))]
    wanted = alone(configs[-1], few_digits)
    for at_once in (False, True):
        first, *lost, last = shared(configs, few_digits, at_once=at_once)
        assert_same(last, wanted)
        assert all(e.failure is None for e in (*first, *last))
        one, other = (telemetry(run)["loss"] for run in (first, last))
        assert len(one) == len(other) == 8
        assert abs(one - other).max() > 1e-3
        for (epoch,) in lost:
            bad = int(np.flatnonzero(~np.isfinite(epoch.telemetry["loss"]))[0])
            assert f" at step {bad} (steps 0 to 3)" in epoch.failure


@pytest.mark.parametrize("steps", [5, 7, 1000, 22_000])
def test_polynomial_schedule_is_constant_after_its_end(steps):
    """A compiled `1 - n / n` can be slightly below 0, whose power of 0.9 is NaN."""
    own = {"schedule": "polynomial", "end_learning_rate": 0.01, "power": 0.9, "decay_steps": steps}
    rate = optimizer.schedule(config(**own, learning_rate=0.5), 1)
    at = np.array([0, 1, steps - 1, steps, steps + 1, 10 * steps], np.int32)
    wanted = 0.49 * (1 - np.minimum(at, steps) / steps) ** 0.9 + 0.01
    np.testing.assert_allclose(jax.jit(jax.vmap(rate))(at), wanted, rtol=1e-4)


def test_which_runs_share_a_program():
    group = config(clip=("global_norm=1",))
    chains = [
        group,  # 0
        config(clip=("global_norm=2.5",), learning_rate=0.3, seed=4),  # with 0
        config(clip=("clip_by_global_norm=1e+5",)),  # with 0: another name
        config(clip=("global_norm=1,ord=inf",)),
        config(clip=("norm=1",)),
        config(clip=()),
        config(clip=("value=1",)),
        config(clip=("value=2",)),  # two bounds: not traced
        config(clip=("global_norm=1", "norm=2")),
        config(clip=("global_norm=3", "norm=4")),  # with the one before
        config(clip=("norm=2", "global_norm=1")),
        config(clip=("global_norm=2",), epochs=3),
        config(clip=("global_norm=2",), init_std=0.2),
        config(clip=("by=zscore,scope=global",)),
        config(clip=("by=ema_ratio,scope=global",)),
        config(clip=(), seed=7, learning_rate=1e-5),  # with the one without rules
    ]
    assert batched_runs.groups(chains) == [
        *([0, 1, 2], [3], [4], [5, 15], [6], [7], [8, 9], [10], [11], [12], [13], [14])
    ]


@pytest.mark.slow
def test_one_program_for_a_group(few_digits, monkeypatch):
    """The epoch is traced once for all runs."""
    traced, scan = [], loop.scan

    def counted(*arguments):
        traced.append(arguments[0].seed)
        return scan(*arguments)

    configs = [config(epochs=1, seed=seed, learning_rate=0.1 + seed) for seed in (0, 1)]
    runs = [loop.prepare(c, few_digits) for c in configs]
    monkeypatch.setattr(loop, "prepare", lambda c, data: runs[c.seed])
    monkeypatch.setattr(loop, "scan", counted)
    assert [len(run) for run in shared(configs, few_digits, at_once=False)] == [1, 1]
    assert traced == [0]


@pytest.mark.slow
def test_training_stops_when_all_runs_are_lost(few_digits, monkeypatch):
    asked, original = [], loop.batch_indices

    def counted(config, count, epoch):
        asked.append(epoch)
        return original(config, count, epoch)

    monkeypatch.setattr(loop, "batch_indices", counted)
    configs = [config(learning_rate=rate, epochs=5) for rate in (1e30, 1e31)]
    assert [len(run) for run in shared(configs, few_digits, at_once=True)] == [1, 1]
    assert asked == [0, 0]


@pytest.mark.slow
def test_a_skipped_step_does_not_lose_the_run(few_digits, tmp_path):
    """The second batch of each epoch holds a NaN."""
    from rich.console import Console

    images = few_digits.train_images.copy()
    images[20] = np.nan
    own = {"shuffle": False, "guard": ("skip_nonfinite",)}
    variants = compare.variants(config(**own), {"guard": [("skip_nonfinite",), ()]})
    data = few_digits._replace(train_images=images)
    content = compare.run(variants, data, str(tmp_path), Console(), at_once=False)
    assert [row["lost_at_step"] for row in content["rows"]] == [[None], [1]]
    assert [len(row["test_accuracy"]) for row in content["rows"]] == [1, 0]


def test_at_once_is_faster_for_small_networks_on_a_cpu(few_digits, monkeypatch):
    small, large = config(sizes=(600,)), config(sizes=(700,))  # times 64 + 10
    assert compare.is_faster_at_once([small], few_digits)
    assert not compare.is_faster_at_once([large], few_digits)
    wide = few_digits._replace(train_images=np.zeros((1, 784), np.float32))
    assert not compare.is_faster_at_once([config(sizes=(64,))], wide)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compare.is_faster_at_once([large], few_digits)
