"""Gradients of constant norm: no learned rule clips them, no guard skips them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import thresholds
from tests.support import guards, learned, modes, registry
from tests.support import oracles_learned as ol
from tests.support.contexts import case, one_by_one

STEPS = 300
SIZES = {"one": 1.0, "sum": 0.1 + 0.2, "tiny": 1e-20, "huge": 1e30}
MODES = ("reciprocal", "max", "mean")


def _rules():
    soon = {"warmup_steps": 5, "max_norm": None}
    ratio = {"warmup_steps": 3, "warmup_norm": 3e38}
    return {
        "autoclip": jaxclip.autoclip(50.0, window=8, scope="unit"),
        "tracked_quantile": jaxclip.clip_by(thresholds.tracked_quantile(), scope="unit"),
        **{f"zclip {m}": jaxclip.zclip(mode=m, scope="unit", **soon) for m in MODES},
        "adagc": jaxclip.adagc(**ratio, scope="unit"),
        "clip_by_history": jaxclip.clip_by_history(scope="unit", min_history=2),
    }


WITH_SPREAD = {"clip_by_history", *(f"zclip {m}" for m in MODES)}
# By the published formula this one steps down by exp(-eta q) from every norm that it admits.
LEAST = {"tracked_quantile": np.exp(-0.1)}


COLUMNS = [(name, turning) for name in SIZES for turning in (False, True)]


def _columns(dtype, steps=STEPS):
    """For each size a vector that stays the same and one that turns, as columns of a matrix."""
    direction = np.random.default_rng(0).normal(size=(steps, 12))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    columns = [SIZES[n] * (direction if turns else 0 * direction + direction[0])
               for n, turns in COLUMNS]  # fmt: skip
    return jnp.asarray(np.stack(columns, axis=-1), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_learned_rules_clip_nothing(dtype):
    """By more than rounding: their norms differ in the last place."""
    with modes.maybe_x64(dtype):
        stacked = {"w": _columns(dtype)}
        found = learned.run(_rules(), stacked)
    for name, seen in found.items():
        with case(name):
            least = LEAST.get(name, 1.0) * (1 - 4 * registry.eps(dtype))
            factor = np.asarray(seen.updates["w"], np.float64) / np.asarray(stacked["w"], float)
            assert (factor.min(axis=(0, 1)) >= least).all()
            assert factor.max() <= 1
            if name in WITH_SPREAD and dtype != "bfloat16":  # whose rounding exceeds the spread
                registry.assert_same_bits(seen.updates, jax.device_get(stacked))


GUARDED = {
    "alone": lambda guard: guard(optax.identity()),
    "behind a clip": lambda guard: optax.chain(
        jaxclip.clip_by_global_norm(0.1 + 0.2), guard(optax.identity())
    ),
    "behind a bound that sets": lambda guard: optax.chain(
        jaxclip.clip_by(0.1 + 0.2, scope="global", bound="set"), guard(optax.identity())
    ),
    "around a clip": lambda guard: guard(jaxclip.clip_by_global_norm(0.1)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "dtype"),
    [
        *((place, "float32") for place in GUARDED),
        pytest.param("alone", "float64", marks=pytest.mark.slow),
        pytest.param("behind a clip", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_skip_spikes_skips_nothing(place, dtype):
    """Neither by the norm nor by a loss that differs in its last place."""
    short = {} if dtype == "bfloat16" else {"window": 8, "min_history": 3}
    tx = GUARDED[place](functools.partial(jaxclip.skip_spikes, **short))
    with modes.maybe_x64(dtype):
        columns = _columns(dtype)
        last_place = np.random.default_rng(1).integers(-1, 2, STEPS)
        losses = jnp.asarray((0.1 + 0.2) * (1 + last_place * 2.0**-23), jnp.float32)

        @jax.jit
        def run(stacked):
            def body(state, step):
                u, loss = step
                return tx.update(u, state, u, value=loss)[::-1]

            start = tx.init(stacked[0])
            return jax.lax.scan(body, start, (stacked, losses))[0]

        for column in (("sum", False), ("sum", True), ("huge", False)):
            found = jaxclip.metrics(run(columns[..., COLUMNS.index(column)]))
            assert int(found["skip_spikes/count"]) == STEPS
            assert int(found["skip_spikes/skipped_count"]) == 0, column


def test_skip_spikes_of_negative_losses():
    """The least spread is relative to the size of the mean, whatever its sign."""
    tx = jaxclip.skip_spikes(optax.identity(), window=8, min_history=3)
    losses = [-0.3] * 4 + [-0.3 * (1 - 2.0**-20), -0.3, -0.29]
    _, states = guards.loop(tx, [1.0] * len(losses), value=list(map(jnp.float32, losses)))
    assert [bool(s.skipped) for s in states] == [False] * 6 + [True]


def _limits(make, norms):
    """The recorded threshold at each step, and that of float64 NumPy."""
    stacked = {"w": jnp.asarray(norms, jnp.float32)[:, None]}
    return learned.run({"": make()}, stacked)[""].record["threshold"]


@pytest.mark.slow
@pytest.mark.parametrize("spread", [1e-3, 0.25])
def test_limit_is_at_least_the_mean_and_min_spread(spread):
    norms = 1 + 1e-5 * np.random.default_rng(0).normal(size=60)
    settings = {"sigma": 3.0, "window": 16, "min_history": 4}
    make = functools.partial(jaxclip.clip_by_history, **settings, min_spread=spread)
    limits = _limits(make, norms)
    means = np.array([norms[max(0, i - 16) : i].mean() for i in range(4, 60)])
    np.testing.assert_allclose(limits[4:], means * (1 + spread), rtol=1e-6)
    soon = {"warmup_steps": 4, "max_norm": None, "min_spread": spread}
    limits = _limits(functools.partial(jaxclip.zclip, **soon), norms)
    oracle = ol.ZScore(**soon)
    np.testing.assert_allclose(limits[4:], [oracle(n)[1] for n in norms][4:], rtol=1e-6)
    assert (limits[4:] >= (1 + spread) * (1 - 1e-4)).all()


STEADY = [1.0] * 8
RULES = {
    "clip_by_history": (lambda **k: jaxclip.clip_by_history(min_history=4, **k), 1.001),
    "zclip": (lambda **k: jaxclip.zclip(mode="max", warmup_steps=4, max_norm=None, **k), 1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_spike_of_one_percent_is_clipped(name):
    """One of a twentieth of a percent is not, except with `min_spread=0`."""
    make, want = RULES[name]
    outs, _ = one_by_one(make(), [*STEADY, 1.0005, 1.01])
    assert outs[:-1] == [np.float32(x) for x in (*STEADY, 1.0005)]
    np.testing.assert_allclose(outs[-1], want, rtol=3e-4)
    outs, _ = one_by_one(make(min_spread=0.0), [*STEADY, 1.0005])
    np.testing.assert_allclose(outs[-1], 1.0, rtol=5e-6)


@pytest.mark.slow
def test_spike_of_one_percent_is_skipped():
    guard = functools.partial(jaxclip.skip_spikes, optax.identity(), min_history=4)
    assert one_by_one(guard(), [*STEADY, 1.0005, 1.01])[0][-2:] == [np.float32(1.0005), 0.0]
    assert one_by_one(guard(min_spread=0.0), [*STEADY, 1.0005])[0] == [*STEADY, 0.0]
    _, state = one_by_one(guard(min_spread=0.5), [*STEADY, 1.4, 1.0])
    assert int(state.skipped_count) == 0
