"""Every strategy on eight devices trains the same run as one device."""

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import PartitionSpec as P

from jaxclip.train.config import presets
from jaxclip.train.errors import UserError
from jaxclip.train.recording import checkpoints
from jaxclip.train.training import devices, loop, optimizer
from tests.train import runs

STRATEGIES = ("jit", "pmap", "shard_map", "fsdp")
SETTINGS = {
    "guarded": {
        "batch_norm": True,
        "clip": ("autoclip=50,window=4",),
        "guard": ("skip_spikes,window=4,min_history=2,sigma=1",),
        "optimizer": "momentum",
    },
    "columns": {
        "clip": ("agc=0.01", "value=0.001,record=true"),
        "project": ("max_norm=0.5,axis=0", "box=0.1,record=true"),
    },
    "rows": {"clip": ("by=zscore,scope=unit,axis=1",), "project": ("max_norm=0.5,axis=1",)},
    "rows_and_columns": {"clip": ("norm=0.01,axis=1",), "project": ("max_norm=0.5,layers=hidden",)},
    "whole_kernels": {"project": ("spectral_norm=0.5",), "optimizer": "stable_adamw"},
    "bfloat16": {"clip": ("global_norm=0.02",), "dtype": "bfloat16"},
}
# Rules see shards in shard_map, and themselves add up over devices. Under fsdp the compiler does
# the latter. Under pmap they see whole kernels, and under jit nothing but those.
SETTINGS_OF = {
    "jit": ("guarded",),
    "pmap": ("guarded", "bfloat16"),
    "shard_map": ("guarded", "columns", "rows", "rows_and_columns", "whole_kernels"),
    "fsdp": ("guarded",),
}


@pytest.fixture(autouse=True, scope="module")
def compiled_anew():
    """No compilation cache: jaxlib 0.10.2 crashes on a CPU in some programs that it read back.

    So `rows` in shard_map passed with an empty cache, and ended the process with a full one.
    """
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


def config(**changes):
    sizes = {"sizes": (16,), "batch_size": 32, "epochs": 2, "report": "accuracy"}
    return presets.get("explode").override(sizes | changes)


def last_epoch(settings, data):
    return list(loop.train(loop.prepare(settings, data), data))[-1]


def arrays(tree):
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def trained(few_digits):
    """The last epoch of a strategy and settings; each is trained once."""
    known = {}

    def epoch(way, name):
        if (way, name) not in known:
            settings = config(parallel=way, **SETTINGS[name])
            known[way, name] = last_epoch(settings, few_digits)
        return known[way, name]

    return epoch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way"), [(name, way) for way, names in SETTINGS_OF.items() for name in names]
)
def test_the_same_run(way, name, trained):
    """All telemetry, test scores and weights agree.

    The exception is a bias before batch normalization: its gradient is 0 up to rounding.
    """
    alone, spread = trained("none", name), trained(way, name)
    tolerance = 0.02 if name == "bfloat16" else 2e-3 if name == "whole_kernels" else 1e-5
    assert spread.telemetry.keys() == alone.telemetry.keys()
    for key, values in alone.telemetry.items():
        if name == "guarded" and key.endswith("layers/0/bias"):
            continue
        # Rounding decides whether a unit at its limit counts as clipped.
        absolute = 0.2 if key.endswith("/fraction") or "count" in key else 1e-7
        if name == "bfloat16" and key == "accuracy":
            continue
        found, wanted = (np.asarray(v, np.float64) for v in (spread.telemetry[key], values))
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=absolute, err_msg=key)
    assert spread.test["test_loss"] == pytest.approx(alone.test["test_loss"], rel=tolerance)
    assert spread.test.keys() == alone.test.keys()
    for found, wanted in zip(arrays(spread.state.params), arrays(alone.state.params), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.slow
@pytest.mark.parametrize("way", STRATEGIES)
def test_shards_on_each_device(way, trained):
    """Kernels and their momentum are sharded or replicated; replicas are equal."""
    state = trained(way, "guarded").state
    pieces = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x.addressable_shards
        for path, x in jax.tree_util.tree_leaves_with_path(state)
    }
    in_parts = {
        name
        for name, shards in pieces.items()
        if len({str(shard.index) for shard in shards}) == len(shards)
    }
    kernels = (name for name in pieces if name.endswith(("0/kernel", "1/kernel")))
    large = {name for name in kernels if pieces[name][0].data.ndim == 2}
    assert len(large) == 4  # the parameters, and their momentum
    assert in_parts == (large if way in devices.SHARDED else set())
    for name in pieces.keys() - in_parts:
        first, *others = (np.asarray(shard.data) for shard in pieces[name])
        assert len(others) == 7
        assert all(other.tobytes() == first.tobytes() for other in others), name


@pytest.mark.slow
def test_shard_map_does_not_shard_units(few_digits):
    def specs(way, **changes):
        settings = config(parallel=way, sizes=(32, 12), **changes)
        params = loop.build_network(settings, few_digits).params
        found = devices.strategy(settings, params, optimizer.unit_axes(settings, params))
        return [found.params["layers"][i]["kernel"] for i in range(3)]

    rows, columns, whole = P("devices"), P(None, "devices"), P()
    # 64 x 32, 32 x 12, 12 x 10: eight divides neither 12 nor 10
    assert specs("fsdp", clip=("agc=0.01",)) == [rows, rows, whole]
    assert specs("shard_map") == [rows, rows, whole]
    assert specs("shard_map", clip=("agc=0.01",)) == [columns, whole, whole]
    assert specs("shard_map", project=("max_norm=1",)) == [columns, whole, whole]
    assert specs("shard_map", project=("max_norm=1,axis=1",)) == [rows, rows, whole]
    assert specs("shard_map", project=("spectral_norm=1",)) == [whole] * 3
    assert specs("shard_map", clip=("zclip,scope=unit",)) == [columns, whole, whole]
    assert specs("jit") == specs("pmap") == [whole] * 3


@pytest.mark.slow
def test_dropout_differs_between_devices(few_digits):
    """In manual strategies each device draws its mask; both strategies draw the same masks."""
    settings = config(dropout=0.3, epochs=1)
    loss = {}
    for way in ("none", "fsdp", "pmap", "shard_map"):
        epoch = last_epoch(settings.override({"parallel": way}), few_digits)
        loss[way] = epoch.telemetry["loss"]
    for one, other, same in (("none", "fsdp", True), ("none", "pmap", False)):
        assert np.allclose(loss[one], loss[other], rtol=1e-5) == same
    np.testing.assert_allclose(loss["pmap"], loss["shard_map"], rtol=1e-5)


def test_device_keys_differ():
    strategy = devices.Strategy("pmap")
    draw = jax.pmap(
        lambda key: jax.random.key_data(strategy.device_key(jax.random.wrap_key_data(key))),
        axis_name=devices.AXIS,
    )
    drawn = np.asarray(draw(np.zeros((8, 2), np.uint32)))
    assert len({key.tobytes() for key in drawn}) == 8


@pytest.mark.slow
def test_batch_must_divide_by_devices(few_digits):
    with pytest.raises(UserError, match="--batch-size=12: must be a multiple of the 8 devices"):
        loop.prepare(config(parallel="jit", batch_size=12), few_digits)


@pytest.mark.slow
def test_several_processes_need_a_strategy(few_digits, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="--parallel=none: there are several processes"):
        loop.prepare(config(), few_digits)


EPOCHS = [*("train", "explode", *runs.SMALL, "--optimizer", "momentum"), "--epochs"]


@pytest.mark.slow
def test_resumes_with_another_strategy(tmp_path, capsys):
    """A run whose strategy changes with each epoch ends with the same state.

    Shards become whole arrays, whole arrays shards, and arrays of all devices those of one.
    """
    folder = tmp_path / "run"
    runs.train(*EPOCHS, "1", "--parallel", "fsdp", "--out", str(folder))
    for epochs, way in enumerate(("pmap", "shard_map", "none"), 2):
        more = ["--epochs", str(epochs), "--parallel", way]
        runs.train("train", "--resume", "--out", str(folder), *more)
    trained = _test_scores(capsys)
    runs.train("evaluate", str(folder))
    assert _test_scores(capsys) == trained
    runs.train(*EPOCHS, "4", "--out", str(tmp_path / "undisturbed"))
    (found, at), (wanted, also) = map(runs.last_state, (folder, tmp_path / "undisturbed"))
    assert at == also == checkpoints.Position(4, 8)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def _test_scores(capsys):
    """The last printed test scores, as text."""
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    return [line[-2:] for line in lines if line[:2] in (["test", "loss"], ["test", "accuracy"])][
        -2:
    ]


@pytest.mark.slow
def test_compare_strategies(tmp_path):
    """Runs on several devices are trained in turn and give equal rows."""
    small = [*runs.SMALL, "--epochs", "1", "--clip", "global_norm=0.02", "--seeds", "2"]
    ways = ("none", "pmap")
    flags = [x for way in ways for x in ("--parallel", way)]
    runs.train("compare", *small, *flags, "--out", str(tmp_path))
    rows = runs.strictly((tmp_path / "compare.json").read_text())["rows"]
    assert [row["rule"] for row in rows] == [f"parallel {way}" for way in ways]
    for row in rows:
        assert row["test_loss"] == pytest.approx(rows[0]["test_loss"], rel=1e-5)
