"""Steps that are not finite although the gradient is: a guard skips them and counts them apart."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import guards, registry
from tests.support.guards import GUARDS, U

INF = float("inf")
by_guard = pytest.mark.parametrize("guard", GUARDS)
F16 = jnp.array([1e-4, 1e-2], jnp.float16)


def _divided(updates, params):
    return jax.tree.map(lambda u, p: u / p, updates, params)


def _raised(x):
    return jax.lax.complex(jnp.real(x), jnp.imag(x) * 3e38)


# An inner transformation, weights and a finite gradient: some elements of the step are not finite.
CASES = {
    "Adam in float16": (optax.adam(1e-3), jnp.ones(2, jnp.float16), F16),
    "product in float16": (optax.sgd(1e3), jnp.zeros(2, jnp.float16), F16 * 1e4),
    "product in bfloat16": (
        optax.scale(1e20),
        jnp.zeros(2, jnp.bfloat16),
        jnp.array([1e30, 1.0], jnp.bfloat16),
    ),
    "sum in float32": (
        optax.add_decayed_weights(1.0),
        jnp.array([3e38, 1.0]),
        jnp.array([3e38, 1.0]),
    ),
    "schedule of inf": (
        optax.scale_by_schedule(lambda count: jnp.where(count < 0, 1.0, INF)),
        jnp.ones(2),
        jnp.ones(2),
    ),
    "schedule of inf times 0": (
        optax.scale_by_schedule(lambda count: jnp.where(count < 0, 1.0, INF)),
        jnp.ones(2),
        jnp.array([0.0, 1.0]),
    ),
    "division by a weight of zero": (
        optax.stateless(_divided),
        jnp.array([0.0, 1.0]),
        jnp.array([1.0, 1.0]),
    ),
    "zero divided by zero": (
        optax.stateless(_divided),
        jnp.array([0.0, 1.0]),
        jnp.array([0.0, 1.0]),
    ),
    "decay of infinite weights": (optax.adamw(1e-3), jnp.array([INF, 1.0]), jnp.ones(2)),
    "imaginary part": (
        optax.stateless(lambda u, p: jax.tree.map(_raised, u)),
        jnp.ones(2, jnp.complex64),
        jnp.array([1 + 2j, 1.0], jnp.complex64),
    ),
}


def _trees(case):
    inner, weights, gradient = CASES[case]
    rest = jnp.ones(3, weights.dtype)
    return inner, {"w": weights, "b": rest}, {"w": gradient, "b": rest}


@pytest.mark.relaxed
@pytest.mark.parametrize(
    "case",
    [case if i < 2 else pytest.param(case, marks=pytest.mark.slow) for i, case in enumerate(CASES)],
)
def test_step_is_skipped(case):
    inner, params, grads = _trees(case)
    alone, _ = inner.update(grads, inner.init(params), params)
    assert not np.isfinite(np.asarray(alone["w"], np.complex128)).all()
    both = {name: guard(inner) for name, guard in GUARDS.items()}
    first = {name: tx.init(params) for name, tx in both.items()}

    def update(u, s, p):
        return {k: tx.update(u, s[k], p) for k, tx in both.items()}

    after = jax.jit(update)(grads, first, params)
    for name, (out, state) in after.items():
        assert guards.is_zero(out)
        assert {k: x.dtype for k, x in out.items()} == {k: x.dtype for k, x in alone.items()}
        registry.assert_same_bits(state.guarded_state, first[name].guarded_state)
        registry.assert_same_bits(optax.apply_updates(params, out), params)
        counts = state.nonfinite_count, state.nonfinite_step_count, state.skipped_count
        assert [int(n) for n in counts] == [0, 1, 1]
        assert int(jaxclip.metrics(state)[f"{name}/nonfinite_step_count"]) == 1


@pytest.mark.relaxed
def test_weights_stay_finite():
    """Adam in float16: the square of 1e-4 is 0 there, and so is Adam's 1e-8."""
    params, tx = {"w": jnp.ones(2, jnp.float16)}, jaxclip.skip_nonfinite(optax.adam(1e-3))
    state = tx.init(params)
    for factor in (1.0, 1.0, 100.0, 100.0):  # 1e-2 is large enough
        updates, state = tx.update({"w": F16 * jnp.float16(factor)}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(np.float32(params["w"]), 1 - 2e-3, rtol=1e-3)
    assert (int(state.skipped_count), int(state.nonfinite_step_count)) == (2, 2)


@by_guard
def test_good_steps_between(guard):
    """The state and the memory go on as if the bad steps had not occurred."""

    def scale(u, p):
        return jax.tree.map(lambda x: x * jnp.where(p["b"][0] < 0, INF, 1.0), u)

    tx = GUARDS[guard](optax.chain(optax.trace(0.9), optax.stateless(scale)))
    update = jax.jit(tx.update)
    state, outs = tx.init(U), []
    for sign in (1.0, -1.0, 1.0):
        out, state = update(U, state, {"w": U["w"], "b": sign * U["b"]})
        outs.append(float(out["b"][0]))
    np.testing.assert_allclose(outs, [12.0, 0.0, 12 * 1.9], rtol=1e-6)
    assert (int(state.update_count), int(state.nonfinite_step_count)) == (3, 1)
    assert int(state.consecutive_count) == 0


@by_guard
def test_max_consecutive(guard):
    tx = GUARDS[guard](optax.scale(INF), max_consecutive=2)
    outs, states = guards.loop(tx, [1.0] * 4)
    assert [guards.is_zero(x) for x in outs] == [True, True, False, False]
    assert np.isinf(outs[-1]["w"]).all()
    assert int(states[-1].nonfinite_step_count) == 4
    assert (int(states[-1].skipped_count), int(states[-1].nonfinite_count)) == (2, 0)


@by_guard
def test_counted_apart(guard):
    """A step is counted only where gradient and loss are finite."""
    tx = GUARDS[guard](optax.scale(1e38))
    _, states = guards.loop(tx, [1.0, float("nan"), 0.1, INF, 1.0])
    assert [int(s.nonfinite_step_count) for s in states] == [1, 1, 1, 1, 2]
    assert [int(s.nonfinite_count) for s in states] == [0, 1, 1, 2, 2]
    assert [bool(s.skipped) for s in states] == [True, True, False, True, True]


@by_guard
def test_unchecked(guard):
    tx = GUARDS[guard](optax.scale(INF), check_step=False)
    outs, states = guards.loop(tx, [1.0, float("nan")])
    assert np.isinf(outs[0]["w"]).all()
    assert guards.is_zero(outs[1])
    assert [int(s.nonfinite_step_count) for s in states] == [0, 0]
    same = GUARDS[guard](optax.scale(INF)).init(U)  # the check may be turned on in mid-run
    assert guards.types(states[-1]) == guards.types(same)


@pytest.mark.slow
@pytest.mark.relaxed
def test_state_is_not_looked_at():
    """The square of 300 is inf in float16: the step is 0, and finite."""
    params = jnp.ones(2, jnp.float16)
    tx = jaxclip.skip_nonfinite(optax.adam(1e-3))
    out, state = tx.update(jnp.array([300.0, 1.0], jnp.float16), tx.init(params), params)
    assert float(out[0]) == 0
    assert int(state.skipped_count) == 0
    # A state may rightly turn to inf, as that of a schedule that ends the clipping.
    rule = jaxclip.clip_by_global_norm(lambda count: jnp.where(count < 1, 1.0, INF))
    outs, states = guards.loop(jaxclip.skip_nonfinite(rule), [1.0, 1.0])
    assert [float(s.guarded_state.threshold) for s in states] == [1.0, INF]
    registry.assert_same_bits(outs[1], U)
