"""Gradient accumulation with one bad micro-step.

`optax.MultiSteps` keeps a running mean and resets it by a product with 0, so that one NaN stays in
it for ever. A guard around it leaves the micro-step out, whole; a rule before it cleans it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import guards, registry

pytestmark = pytest.mark.relaxed  # MultiSteps promotes

NAN, INF = float("nan"), float("inf")
U = {"w": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}  # norm 5
K = 2


def _values(outs):
    return [float(x["b"][0]) for x in outs]


def _many(inner, k=K):
    return optax.MultiSteps(inner, k)


def _rule(tx):
    """As a transformation, which `optax.chain` wants."""
    return optax.GradientTransformationExtraArgs(tx.init, tx.update)


def test_multi_steps_without_guard_stays_nan():
    """Why the tests below are here."""
    outs, states = guards.loop(_many(optax.trace(0.9)), [1.0, NAN, *[1.0] * 8], U)
    assert np.isnan(_values(outs)[3::2]).all()
    assert np.isnan(states[-1].acc_grads["b"]).all()


def _as_if_it_had_not_been(tx, factors, good):
    """The run with the bad micro-steps and the one without end in the same bits."""
    update = jax.jit(tx.update)
    outs, states = guards.loop(tx, factors, U, update)
    plain, plain_states = guards.loop(tx, good, U, update)
    for factor, out in zip(factors, outs, strict=True):
        if factor in good:
            registry.assert_same_bits(out, plain.pop(0))
        else:
            assert guards.is_zero(out)
    registry.assert_same_bits(states[-1].guarded_state, plain_states[-1].guarded_state)
    assert int(states[-1].skipped_count) == len(factors) - len(good)
    return [i for i, x in enumerate(outs) if not guards.is_zero(x)]


@pytest.mark.parametrize("form", ["object", pytest.param("other", marks=pytest.mark.slow)])
def test_guard_around_multi_steps_with_nan(form):
    """First, in the middle and last of a mean."""
    many = _many(optax.adam(0.1), 3)
    tx = jaxclip.skip_nonfinite(many if form == "object" else many.gradient_transformation())
    factors = [1.0, 1.1, 0.9, NAN, 2.0, INF, 0.5, 1.0, -INF, NAN, 0.7, 0.8, NAN, 1.2]
    good = [f for f in factors if np.isfinite(f)]
    assert _as_if_it_had_not_been(tx, factors, good) == [2, 7, 13]


def test_guard_around_multi_steps_with_spike():
    """A huge finite micro-step would be most of the mean."""
    tx = jaxclip.skip_spikes(_many(optax.adam(0.1), 2), window=8, min_history=2)
    factors = [1.0, 1.1, 0.9, 1e30, 1.05, NAN, 0.95, 1.0]
    good = [f for f in factors if f in (1.0, 1.1, 0.9, 1.05, 0.95)]
    assert _as_if_it_had_not_been(tx, factors, good) == [1, 4, 7]


def test_guard_around_multi_steps_in_scan():
    """Four micro-steps a mean, one of them NaN: the mean is that of the four good ones."""
    tx = jaxclip.skip_nonfinite(_many(jaxclip.clip_by_global_norm(100.0), 4))
    factors = jnp.array([1.0, NAN, 2.0, 3.0, 6.0, 1.0, 1.0, 1.0, 1.0, 0.0])

    @jax.jit
    def run(state):
        def body(state, factor):
            return tx.update(jax.tree.map(lambda x: factor * x, U), state, U)[::-1]

        return jax.lax.scan(body, state, factors)

    state, outs = run(tx.init(U))
    np.testing.assert_allclose(outs["b"][:, 0], [0, 0, 0, 0, 12, 0, 0, 0, 4, 0], rtol=1e-6)
    found = jaxclip.metrics(state)
    assert int(found["clip_by_global_norm/count"]) == 2
    np.testing.assert_allclose(found["clip_by_global_norm/norm"], 5.0, rtol=1e-6)
    assert int(found["skip_nonfinite/skipped_count"]) == 1
    assert int(state.guarded_state.mini_step) == 1


def test_rule_before_and_inside_multi_steps():
    """Before: each micro-gradient is clipped, then averaged. Inside: the mean is clipped."""
    before = optax.chain(jaxclip.clip_by_global_norm(10.0), _rule(_many(optax.identity())))
    inside = _many(jaxclip.clip_by_global_norm(10.0))
    factors = [1.0, 5.0, 1.0, 2.0]  # norms 5, 25, 5, 10
    outs, _ = guards.loop(before, factors, U)
    np.testing.assert_allclose(_values(outs), [0, 0.8 * 7.5, 0, 0.8 * 7.5], rtol=1e-6)
    outs, _ = guards.loop(inside, factors, U)
    np.testing.assert_allclose(_values(outs), [0, 0.8 * 10, 0, 0.8 * 7.5], rtol=1e-6)


@pytest.mark.slow
def test_learned_rules_before_and_inside_multi_steps():
    """Before, they learn from every micro-gradient; inside, from every mean."""
    history = jaxclip.clip_by_history(sigma=0.0, window=4, min_history=2, min_spread=0.0)
    factors = [1.0, 1.0, 1.0, 3.0, 1.0, 9.0]  # means 1, 2, 5
    before = optax.chain(history, _rule(_many(optax.identity())))
    outs, states = guards.loop(before, factors, U)
    # The third and later are held to the mean of the last four: 1, 1, 1, 1, 1.5, 1.5.
    np.testing.assert_allclose(_values(outs)[1::2], [4.0, 4.0, 4 * 1.25], rtol=1e-6)
    assert int(jaxclip.metrics(states[-1])["clip_by_history/count"]) == 6
    outs, states = guards.loop(_many(history), factors, U)
    np.testing.assert_allclose(_values(outs)[1::2], [4.0, 8.0, 4 * 1.5], rtol=1e-6)
    assert int(jaxclip.metrics(states[-1])["clip_by_history/count"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["zero", "drop"])
def test_zero_and_drop_before_multi_steps(policy):
    """`zero` keeps the half of the good micro-step; `drop` also the finite part of the bad one."""
    rule = jaxclip.clip_by_global_norm(100.0, nonfinite=policy)
    tx = optax.chain(rule, _rule(_many(optax.identity())))
    outs, states = guards.loop(tx, [1.0, NAN, 1.0, 3.0], U)
    np.testing.assert_allclose(_values(outs), [0, 2.0, 0, 8.0], rtol=1e-6)
    w = [float(x["w"][0]) for x in outs]
    np.testing.assert_allclose(w, [0, 1.5 if policy == "zero" else 3.0, 0, 6.0], rtol=1e-6)
    assert int(states[-1][0].nonfinite_count) == 1
