"""`clippy`: the edges of weights and steps; `test_scaling_rules` has trees, dtypes and contexts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import modes, registry
from tests.support import oracles as o
from tests.support.contexts import once

NAN, INF = float("nan"), float("inf")


def _check(u, w, rel=0.1, absolute=1e-7, rtol=3e-7):
    """Every row is a leaf."""
    u, w = np.float32(u), np.float32(w)
    tx = jaxclip.clippy(rel, absolute, stacked=0)
    out, state = once(tx, jnp.asarray(u), jnp.asarray(w))
    with np.errstate(over="ignore"):
        want = o.clippy(absolute)(rel, list(u), list(w))
    np.testing.assert_allclose(out, want, rtol=rtol, atol=1e-45)
    return out, state


@pytest.mark.slow
def test_the_element_that_decides():
    """One factor for each leaf; a bound that is met exactly keeps every bit."""
    u = [[0.01, 0.4], [0.25, -0.5], [1.0, 1.0]]
    out, state = _check(u, [[1.0, -2.0], [0.5, 1.0], [1e6, 0.0]], 0.5, 0.0, rtol=2e-7)
    registry.assert_same_bits(out[:2], jnp.asarray(u, jnp.float32)[:2])
    assert float(state.fraction) == pytest.approx(1 / 3)
    assert float(state.threshold) == 1.0


def test_weights_of_zero():
    """With `abs=0` such a leaf stays; elements at rest do not count; by default it creeps."""
    out, _ = _check([[1.0, 0.0], [0.0, 0.01]], [[0.0, 0.0], [0.0, 1.0]], absolute=0.0)
    np.testing.assert_array_equal(out, np.float32([[0, 0], [0, 0.01]]))
    out, state = _check([[1.0, 1.0]], [[5.0, 0.0]])
    np.testing.assert_allclose(out, [[1e-7, 1e-7]], rtol=1e-6)
    assert float(state.norm) == pytest.approx(1e7)


@pytest.mark.slow
def test_parts_beyond_float32():
    """An element of 3e38 beside a weight of 0: its part exceeds the largest float."""
    _, state = _check([[3e38, 3e38], [1e30, -1e34]], [[0.0, 1e-3], [1e-8, 2e-9]])
    assert jnp.isinf(state.norm)
    assert int(state.nonfinite_count) == 0


@pytest.mark.slow
def test_small_elements():
    """Steps of 1e-30 beside weights of 1e-32."""
    _check([[1e-30, -2e-30], [3e-36, 1.0]], [[1e-32, 1e-31], [1e-36, 1e9]], absolute=0.0)


def test_weights_that_are_not_finite():
    """NaN weights: counted, and the step as it came; infinite ones bound nothing."""
    u, w = jnp.ones((3, 2)), jnp.array([[NAN, 1.0], [INF, 100.0], [1.0, 1.0]])
    out, state = once(jaxclip.clippy(stacked=0), u, w)
    np.testing.assert_allclose(out, [[1, 1], [1, 1], [0.1, 0.1]], rtol=2e-6)
    assert int(state.nonfinite_count) == 1


def test_complex_steps_count_by_magnitude():
    u, w = jnp.array([3 + 4j, 0.1]), jnp.array([6 - 8j, 1.0], jnp.complex64)
    out, state = once(jaxclip.clippy(0.1, 0.0), u, w)
    np.testing.assert_allclose(out, np.asarray(u) / 5, rtol=1e-6)
    assert float(state.norm) == pytest.approx(5, rel=1e-6)


@pytest.mark.slow
def test_zero_step_has_an_identity_jacobian():
    w = jnp.array([0.0, 2.0])
    slope = jax.jacobian(lambda u: once(jaxclip.clippy(abs=0.0), u, w)[0])(jnp.zeros(2))
    np.testing.assert_array_equal(slope, np.eye(2))


def test_errors():
    u = {"w": jnp.ones(2)}
    rule = jaxclip.clippy()
    with pytest.raises(ValueError, match="params=None: clippy needs"):
        rule.update(u, rule.init(u))
    with pytest.raises(ValueError, match="params and updates differ in shape"):
        rule.update(u, rule.init(u), {"w": jnp.ones(3)})
    for name in ("rel", "abs"):
        for bad, error in (
            (-1.0, ValueError),
            (NAN, ValueError),
            (INF, ValueError),
            ("x", TypeError),
        ):
            with pytest.raises(error, match=f"{name}="):
                jaxclip.clippy(**{name: bad})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_thousand_steps(dtype):
    """After Adam's learning rate, in a chain: the reference moves the same weights."""
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(1000, 6)) * 10 ** rng.uniform(-2, 2, (1000, 1))
    with modes.maybe_x64(dtype):
        tx = optax.chain(optax.scale(-0.1), jaxclip.clippy(0.05, 1e-2))
        w = jnp.asarray(rng.normal(size=6), dtype)

        def body(carry, g):
            w, state = carry
            step, state = tx.update(g, state, w)
            return (w + step, state), w + step

        _, got = jax.jit(lambda w: jax.lax.scan(body, (w, tx.init(w)), jnp.asarray(grads, dtype)))(
            w
        )
    want, wide = [], np.asarray(w, np.float64)
    for g in np.asarray(grads, dtype).astype(np.float64):
        step = -0.1 * g
        wide = wide + step * min(1.0, np.min((0.05 * abs(wide) + 1e-2) / abs(step)))
        want.append(wide)
    rtol = 1e-3 if dtype == "float32" else 1e-10
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol)
