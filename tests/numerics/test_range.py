"""Numbers at the ends of their range: norms, magnitudes and factors beyond it, tiny beside huge."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import functional
from tests.support import registry
from tests.support.contexts import once, one_by_one

G = jnp.array([3.0, 4.0])

# ---- norms near the end of the range


@pytest.mark.slow
@pytest.mark.parametrize("large", [2e38, 3e38])
def test_a_large_norm_in_a_window(large):
    """Its reciprocal is no normal number: mean and deviation were 0, and everything was clipped."""
    tx = jaxclip.clip_by_history(window=4, min_history=2)
    outs, _ = one_by_one(tx, [1.0, 1.0, large, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert outs[:2] + outs[3:] == [1.0] * 7
    guard = jaxclip.skip_spikes(optax.identity(), window=4, min_history=2)
    _, state = one_by_one(guard, [1.0, 1.0, large, 1.0, 1.0, 1.0, 1.0])
    assert int(state.skipped_count) == 1


@pytest.mark.slow
@pytest.mark.parametrize("large", [8e37, 2e38, 3.4e38])
def test_a_large_norm_in_the_warm_up_of_adagc(large):
    outs, _ = one_by_one(jaxclip.adagc(warmup_steps=3), [0.5, large, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(outs, [0.5, 1.0, 0.5, 0.5, 0.5], rtol=1e-6)
    u = [jnp.array([3e38]), jnp.array([3e38])]
    out, _ = once(jaxclip.adagc(), u)
    assert 0.5 < float(out[0][0]) <= 1.0  # the norm of both is beyond float32


# ---- small beside large


def test_elements_far_smaller_than_the_norm():
    """A factor in two parts, the first of which alone would be too small for them."""
    cases = ((1e30, 1e-9, 3e29), (2e38, 1e-5, 1e38), (2e38, 1e-5, 1e-5), (1e10, 1.0, 1e-30))
    for large, small, c in cases:
        u = {"a": jnp.array([large]), "b": jnp.array([small])}
        out, _ = once(jaxclip.clip_by_global_norm(c), u)
        factor = float(np.float32(c)) / float(np.float32(large))
        np.testing.assert_allclose(out["a"], [c], rtol=2e-7)
        want = float(np.float32(small)) * factor
        np.testing.assert_allclose(out["b"], [want], rtol=2e-7, atol=1.2e-38)


def test_singular_values_near_the_end_of_the_range():
    w = jnp.diag(jnp.array([3e38, 1e38]))
    for method in ("eigh", "iterative"):
        run = jax.jit(lambda w, m=method: functional.spectral_norm(w, 2e38, method=m))
        np.testing.assert_allclose(run(w), np.diag([2e38, 1e38]), rtol=1e-5)


# ---- beyond the range


BEYOND = np.array([3e38 + 3e38j, 1e30 - 2e30j], np.complex64)  # |z| is none of float32's numbers


@pytest.mark.slow
@pytest.mark.parametrize("ord", [1, 2, 2.5, 3, 200, np.inf])
def test_complex_numbers_whose_magnitude_is_beyond_the_range(ord):
    rule = jaxclip.clip_by(1e38, scope="global", ord=ord)
    out, state = jax.jit(lambda u: once(rule, u))(jnp.asarray(BEYOND))
    wide = BEYOND.astype(np.complex128)
    peak = np.abs(wide).max()
    factor = float(np.float32(1e38)) / (peak * np.linalg.norm(wide / peak, ord))
    np.testing.assert_allclose(np.asarray(out, np.complex128), wide * factor, rtol=5e-7)
    assert int(state.nonfinite_count) == 0
    np.testing.assert_allclose(state.scale, factor, rtol=5e-7)


@pytest.mark.parametrize("make", [
    lambda c: jaxclip.clip(c, record=True),
    lambda c: jaxclip.clip_by_value(-c, c, record=True),
    lambda c: jaxclip.clip_by(c, scope="element"),
])  # fmt: skip
def test_complex_elements_whose_magnitude_is_beyond_the_range(make):
    out, state = jax.jit(lambda u: once(make(1e38), u))(jnp.asarray(BEYOND))
    wide = BEYOND.astype(np.complex128)
    factor = np.minimum(1, float(np.float32(1e38)) / np.abs(wide))
    np.testing.assert_allclose(np.asarray(out, np.complex128), wide * factor, rtol=5e-7)
    registry.assert_same_bits(out[1], BEYOND[1])
    assert int(state.nonfinite_count) == 0
    np.testing.assert_allclose(state.scale, factor[0], rtol=5e-7)
    np.testing.assert_allclose(state.fraction, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["global", "unit"])
@pytest.mark.parametrize("shape", ["tanh", "rational"])
@pytest.mark.parametrize("c", [3e38, 1e38, 1.0, 1e-30])
def test_smooth_shapes_at_the_ends_of_the_range(c, shape, scope):
    u = jnp.asarray(np.minimum(np.array([[0.5], [2.0]]) * c, 3.3e38), jnp.float32)
    wide, limit = np.asarray(u, np.float64), float(np.float32(c))
    norm = np.linalg.norm(wide, axis=1 if scope == "unit" else None, keepdims=True)
    new = limit * np.tanh(norm / limit) if shape == "tanh" else norm * limit / (norm + limit)

    def step(u, c):
        axis = 1 if scope == "unit" else None
        return once(jaxclip.clip_by(c, scope=scope, axis=axis, shape=shape), u)[0]

    for out in (jax.jit(lambda u: step(u, c))(u), jax.jit(step)(u, jnp.float32(c))):
        np.testing.assert_allclose(np.asarray(out, np.float64), wide * (new / norm), rtol=5e-7)


@pytest.mark.parametrize("shape", ["tanh", "rational"])
def test_smooth_shapes_with_a_threshold_that_is_no_normal_number(shape):
    rule = jaxclip.clip_by(1e-39, scope="global", shape=shape)
    for u in (jnp.zeros(2), G):
        np.testing.assert_allclose(jax.jit(lambda u: once(rule, u)[0])(u), 0 * u, atol=1e-38)


def test_parameters_whose_norm_is_beyond_the_range():
    p, u = jnp.full((4,), 3e38), jnp.array([3e36, 4e36, 0.0, 0.0])
    rule = jaxclip.clip_by(jaxclip.thresholds.relative_to_params(0.001), scope="leaf")
    out, state = jax.jit(lambda u, p: once(rule, u, p))(u, p)
    np.testing.assert_allclose(state.threshold, 6e35, rtol=1e-6)
    np.testing.assert_allclose(out, np.asarray(u, np.float64) * (6e35 / 5e36), rtol=1e-6)
