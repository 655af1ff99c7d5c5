"""`scale_loss` with gradients and parameters of every dtype."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import guards, modes, registry

NAN, INF = math.nan, math.inf


def _kinds():
    return {
        "half": jnp.array([6e4, 2e-5], jnp.float16),
        "brain": jnp.array([3.0, 1e30], jnp.bfloat16),
        "single": jnp.array([1e-30, 5.0], jnp.float32),
        "complex": jnp.array([1 - 2j, 4j], jnp.complex64),
        "whole": jnp.array([7], jnp.int32),
        "none": None,
        "empty": jnp.zeros((0, 3), jnp.float16),
    }


def test_dtypes_inside():
    """16 bits become float32 before anything inside sees them; the rest keeps its dtype."""
    seen = []

    def update(updates, state, params=None):
        seen.append((updates, params))
        return updates, state

    inner = optax.GradientTransformation(lambda p: jax.tree.map(jnp.zeros_like, p), update)
    tx, u = jaxclip.scale_loss(inner, 2.0**15), _kinds()
    state = tx.init(u)
    shapes = jax.eval_shape(lambda: u)
    assert jax.tree.structure(tx.init(shapes)) == jax.tree.structure(state)
    out, after = jax.jit(tx.update)(u, state, u)
    want = {"half": "float32", "brain": "float32", "single": "float32", "complex": "complex64",
            "whole": "int32", "empty": "float32"}  # fmt: skip
    for tree in (out, seen[0][0], seen[0][1], state.guarded_state, tx.init(shapes).guarded_state):
        assert {k: x.dtype.name for k, x in tree.items() if x is not None} == want
    for key, x in u.items():
        if key not in ("whole", "none"):
            wide = np.asarray(x).astype(np.complex128)
            np.testing.assert_array_equal(np.asarray(out[key], np.complex128), wide / 2**15)
    np.testing.assert_array_equal(out["whole"], u["whole"])
    assert guards.types(after) == guards.types(state)
    np.testing.assert_allclose(after.norm, 1e30 / 2**15, rtol=4e-3)


@pytest.mark.slow
def test_float64_stays():
    """Flax's returns it as float32."""
    with modes.x64():
        u = {"w": jnp.array([1 + 2.0**-50, 2.0], jnp.float64)}
        tx = jaxclip.scale_loss(optax.identity())
        out, _ = jax.jit(tx.update)({"w": np.asarray(u["w"]) * 2.0**15}, tx.init(u), u)
        registry.assert_same_bits(out, u)


@pytest.mark.slow
@pytest.mark.relaxed
def test_moments_of_parameters_in_float16():
    """They are kept in float32, so Adam neither overflows nor changes its state's type."""
    params = {"w": jnp.ones(3, jnp.float16)}
    tx = jaxclip.scale_loss(optax.adam(1e-3))
    grads = {"w": jnp.array([3e4, 1.0, 6e-5], jnp.float16)}

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), updates["w"]

    (after, _), steps = jax.lax.scan(body, (params, tx.init(params)), None, 2)
    assert (steps.dtype, after["w"].dtype) == (jnp.float32, jnp.float16)
    np.testing.assert_allclose(steps[0], -1e-3 * np.array([1.0, 0.9996, 0.155]), rtol=2e-2)
