"""Learned rules at the edges: no gradient, a bad one, a given norm, odd trees, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import thresholds
from tests.support import contexts, learned, modes, registry
from tests.support.contexts import once, one_by_one
from tests.support.learned import RULES

NAN = float("nan")


def _row(stacked, i):
    return jax.tree.map(lambda x: jnp.asarray(x[i]), stacked)


@pytest.mark.slow
def test_leaves_recover_from_a_zero_warmup():
    """Gradients that were 0, or next to 0, for the whole warm-up and then are 1: after some time
    their updates are of the size of the gradients again.
    """
    rules = {
        "autoclip": jaxclip.autoclip(50.0, window=20, scope="leaf"),
        "zclip": jaxclip.zclip(scope="leaf", warmup_steps=10, restart_after=20),
        "adagc": jaxclip.adagc(max_ratio=2.0, beta=0.9, warmup_steps=10),
        "slow adagc": jaxclip.adagc(warmup_steps=10),
        "clip_by_history": jaxclip.clip_by_history(scope="leaf", window=20, min_history=5),
        "tracked": jaxclip.clip_by(thresholds.tracked_quantile(), scope="leaf"),
        "unit": jaxclip.clip_by(
            thresholds.zscore(warmup_steps=10, restart_after=5), scope="unit", axis=-1
        ),
    }
    steps = np.arange(400)
    stacked = {
        "dead": np.where(steps < 10, 0.0, 1.0)[:, None],
        "tiny": np.where(steps < 10, 1e-12, 1.0)[:, None],
        "usual": np.ones((400, 1)),
    }
    log = learned.run(rules, jax.tree.map(np.float32, stacked))
    for name, seen in log.items():
        for key in stacked:
            last = seen.updates[key][-20:]
            if (name, key) == ("slow adagc", "tiny"):  # by a thousandth of itself a step
                grown = seen.updates[key][-1] / seen.updates[key][-101]
                np.testing.assert_allclose(grown, 1.001**100, rtol=1e-3)
            else:
                assert (last > 0.4).all(), (name, key)


@pytest.mark.slow
def test_gradients_through_the_rules_are_finite():
    """At zero and elsewhere, before and after a warm-up; the threshold of a given state."""
    names = ("autoclip", "zclip", "adagc", "stabilize_gradient")
    tx, stacked = learned.together(names), learned.updates(steps=16, seed=1)
    good = [_row(stacked, i) for i in (1, 4, 9, 10)]
    zero = jax.tree.map(jnp.zeros_like, good[0])

    @jax.jit
    def slopes(u, state):
        def total(u):
            out, after = tx.update(u, state)
            return sum(jnp.sum(x) for x in jax.tree.leaves(out)), after

        return jax.grad(total, has_aux=True)(u)

    state = tx.init(zero)
    for u in (zero, *good, zero):
        slope, state = slopes(u, state)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoclip", "adagc", "stabilize_gradient"])
def test_trees_of_all_kinds(name):
    """Integers, None, empty and scalar leaves, other containers, an empty tree; two updates."""
    trees = {k: registry.build(t, "bfloat16") for k, t in registry.TREES.items()}
    tx = RULES[name]()

    @jax.jit
    def run(trees):
        result = {}
        for key, u in trees.items():
            _, state = tx.update(u, tx.init(u))
            result[key] = tx.update(u, state)
        return result

    for key, (out, state) in run(trees).items():
        with contexts.case(key):
            registry.assert_kept(out, trees[key])
            assert all(np.isfinite(x).all() for x in registry.floats(out))
            assert int(state.update_count) == 2


POLICIES = ("propagate", "nan", "zero", "drop")


@pytest.mark.slow
def test_policies():
    """The rule's policy decides the update for a NaN; the memory never sees the NaN."""
    names = ("zclip", "adagc", "clip_by")
    rules = {p: learned.together(names, nonfinite=p) for p in POLICIES}
    u = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0, 0.0])}
    factors = np.float32([1.0, 0.9, 1.1, 1.0, NAN, 1.0])

    @jax.jit
    def run(factors):
        def body(states, factor):
            u_now = {"a": u["a"], "b": u["b"].at[1].set(factor - factor)}  # NaN, or 0
            u_now = jax.tree.map(lambda x: jnp.where(jnp.isnan(factor), 10 * x, x), u_now)
            both = {p: tx.update(u_now, states[p]) for p, tx in rules.items()}
            return {p: s for p, (_, s) in both.items()}, {p: out for p, (out, _) in both.items()}

        return jax.lax.scan(body, {p: tx.init(u) for p, tx in rules.items()}, factors)

    states, log = run(factors)
    for name in names:
        with contexts.case(name):
            bad = {p: jax.tree.map(lambda x: np.asarray(x[4]), log[p][name]) for p in POLICIES}
            assert np.isnan(bad["propagate"]["b"][1])
            assert bad["propagate"]["b"][0] == 120.0  # as it came
            assert all(np.isnan(x).all() for x in bad["nan"].values())
            assert not any(x.any() for x in bad["zero"].values())
            assert all(np.isfinite(x).all() for x in bad["drop"].values())
            for p in POLICIES:
                assert int(states[p][name].nonfinite_count) == 1
                last = jax.tree.map(lambda x: x[5], log[p][name])
                assert all(np.isfinite(x).all() and x.any() for x in last.values())
            registry.assert_same_bits(states["zero"][name].memory, states["nan"][name].memory)
            for p in ("zero", "propagate"):
                registry.assert_same_bits(states[p][name].memory, states["nan"][name].memory)


@pytest.mark.parametrize("ord", [2, 1, "rms"])
def test_adagc_warmup_with_a_nonfinite_leaf(ord):
    """The norm of the tree is then that of the other leaves."""
    u = {"a": jnp.array([30.0, 40.0]), "b": jnp.array([1.0, NAN]), "c": jnp.array([120.0])}
    tx = jaxclip.clip_by(thresholds.ema_ratio(warmup_norm=1.0), scope="leaf", ord=ord)
    out, state = jax.jit(tx.update)(u, tx.init(u))
    rest = np.array([30.0, 40.0, 120.0])
    got = np.append(out["a"], out["c"])
    # Whether the elements of the bad leaf count for the mean is not laid down.
    wholes = {2: [130.0], 1: [190.0], "rms": [130 / 3**0.5, 130 / 5**0.5]}[ord]
    assert any(np.allclose(got, rest / whole, rtol=1e-6) for whole in wholes), got
    registry.assert_same_bits(out["b"], u["b"])
    assert int(state.nonfinite_count) == 1


def test_traced_warmup_steps_of_0():
    """It lasts for one norm nevertheless, or that would be held at an average of none: at zero."""
    rule = optax.inject_hyperparams(jaxclip.zclip)(warmup_steps=0, max_norm=None)
    u = jnp.array([3.0])
    updates, _ = jax.jit(rule.update)(u, jax.jit(rule.init)(u))
    np.testing.assert_array_equal(updates, u)


@pytest.mark.slow
@pytest.mark.relaxed  # the averages' alpha is in the state of Optax, strongly typed
def test_traced_restart_after_of_0():
    """After one spike at the earliest, or every norm would begin a warm-up."""
    u = jnp.array([3.0])
    settings = {"warmup_steps": 2, "max_norm": None}
    rule = optax.inject_hyperparams(jaxclip.zclip)(restart_after=0, **settings)
    plain = jaxclip.zclip(restart_after=1, **settings)
    state, other = jax.jit(rule.init)(u), plain.init(u)
    update, clipped = jax.jit(rule.update), 0
    for factor in (1.0, 1.1, 50.0, 1.0, 1.1, 50.0):
        got, state = update(factor * u, state)
        want, other = plain.update(factor * u, other)
        np.testing.assert_allclose(got, want, rtol=1e-6)
        clipped += float(want[0]) < 0.9 * factor * float(u[0])
    assert clipped == 2


def test_traced_negative_arguments_count_as_zero():
    """A threshold below 0 would reverse the update."""
    u = jnp.array([3.0, 4.0])

    @jax.jit
    def run(c):
        rules = [jaxclip.autoclip(50.0, window=4, factor=c), jaxclip.adagc(warmup_norm=c)]
        return [once(tx, u) for tx in rules]

    for out, state in run(-1.0):
        np.testing.assert_array_equal(out, np.zeros(2))
        assert float(state.threshold) == 0.0


@pytest.mark.slow
def test_float64_updates_with_float32_state():
    """A gradient within a threshold kept in float32 comes back bit for bit."""
    rng = np.random.default_rng(0)
    with modes.x64():
        makes = [lambda: jaxclip.adagc(warmup_norm=1e6), lambda: jaxclip.autoclip(100.0, window=8)]
        for make in makes:
            tx = make()
            state, update = tx.init(jnp.ones(3, jnp.float32)), jax.jit(tx.update)
            for _ in range(8):
                u = jnp.asarray(rng.normal(size=3))
                out, state = update(u, state)
                registry.assert_same_bits(out, u)
            assert int(state.clipped_count) == 0


def _last(tx, factors, unit):
    """The update after some of these sizes."""
    state, update = tx.init(unit), jax.jit(tx.update)
    for factor in factors:
        out, state = update(factor * unit, state)
    return out


def test_zclip_eps_in_the_quotient():
    out = _last(jaxclip.zclip(max_norm=1e-6), [1e-5], jnp.array([0.6, 0.8]))
    np.testing.assert_allclose(out, np.array([0.6, 0.8]) * 1e-5 / 11, rtol=1e-5)


@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_history_of_extreme_norms(size):
    """No square leaves the range of float32."""
    rule = jaxclip.clip_by_history(window=4, min_history=2)
    out = _last(rule, [1.0, 3.0, 100.0], jnp.array([size], jnp.float32))
    np.testing.assert_allclose(np.float64(out) / size, [5.0], rtol=1e-5)


@pytest.mark.slow
def test_derivative_treats_memory_as_constant():
    """So that a longer update, clipped to the same norm, is no other one."""
    rule, u = jaxclip.autoclip(50.0, window=4), jnp.array([3.0, 4.0])
    _, state = once(rule, u / 5)
    out, change = jax.jvp(lambda u: rule.update(u, state)[0], (u,), (u,))
    np.testing.assert_allclose(out, [1.8, 2.4], rtol=1e-6)  # the median of 1 and 5
    np.testing.assert_allclose(change, [0.0, 0.0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("large", [2e38, 3e38])
def test_window_with_a_norm_near_float32_max(large):
    """Its reciprocal is no normal number: mean and deviation were 0, and everything was clipped."""
    tx = jaxclip.clip_by_history(window=4, min_history=2)
    outs, _ = one_by_one(tx, [1.0, 1.0, large, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert outs[:2] + outs[3:] == [1.0] * 7
    guard = jaxclip.skip_spikes(optax.identity(), window=4, min_history=2)
    _, state = one_by_one(guard, [1.0, 1.0, large, 1.0, 1.0, 1.0, 1.0])
    assert int(state.skipped_count) == 1


@pytest.mark.slow
@pytest.mark.parametrize("large", [8e37, 2e38, 3.4e38])
def test_adagc_warmup_with_a_norm_near_float32_max(large):
    outs, _ = one_by_one(jaxclip.adagc(warmup_steps=3), [0.5, large, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(outs, [0.5, 1.0, 0.5, 0.5, 0.5], rtol=1e-6)
    u = [jnp.array([3e38]), jnp.array([3e38])]
    out, _ = once(jaxclip.adagc(), u)
    assert 0.5 < float(out[0][0]) <= 1.0  # the norm of both is beyond float32


def test_norm_of_float64_within_its_threshold_in_float32_is_kept():
    rule = jaxclip.autoclip(100)
    with modes.x64():
        u = jnp.array([0.1 + 1e-12], jnp.float64)
        out, _ = rule.update(u, rule.init(jnp.zeros(1, jnp.float32)))
        assert out.dtype == jnp.float64
        assert jnp.array_equal(out, u)


def test_published_zscore_never_restarts():
    keep = {"restart_after": None, "skip_update_on_spike": True}
    rule = jaxclip.zclip(warmup_steps=2, max_norm=None, mode="max", **keep)
    norms = jnp.array([1.0, 1.1, *[9.0] * 300])

    def step(state, norm):
        out, state = rule.update(norm[None], state)
        return state, out[0]

    _, outs = jax.lax.scan(step, rule.init(jnp.zeros(1)), norms)
    assert float(outs[-1]) < 9.0


def test_traced_quantile():
    def last(q):
        rule = jaxclip.clip_by(jaxclip.thresholds.quantile(q, window=4), scope="global")
        state = rule.init(jnp.zeros(1))
        for norm in (1.0, 2.0, 3.0):
            out, state = rule.update(jnp.array([norm]), state)
        return out[0]

    np.testing.assert_allclose(jax.jit(last)(0.5), 2.0, rtol=1e-6)
