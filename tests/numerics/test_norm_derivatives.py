"""The derivatives of `jaxclip.norms` against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from jaxclip import norms
from tests.support import modes, registry
from tests.support import oracles as o
from tests.support.contexts import case

ORDS = [1, 2, 3, 2.5, o.INF, "rms", "average"]


@functools.cache
def slope_of(ord):
    return jax.jit(jax.grad(lambda tree: norms.global_norm(tree, ord)))


def _vector():
    return np.asarray(registry.build((6,), "float32"), np.float64)


def test_gradient_is_the_difference_quotient():
    with modes.x64():
        x, tangent = _vector(), np.linspace(-1, 1, 6)

        @jax.jit
        def run(x):
            each = [lambda v, ord=ord: norms.global_norm(v, ord) for ord in ORDS]
            return [(jax.grad(f)(x), jax.jvp(f, (x,), (jnp.asarray(tangent),))[1]) for f in each]

        for ord, (got, dot) in zip(ORDS, run(x), strict=True):
            with case(f"ord={ord}"):
                want = o.difference(lambda v, ord=ord: o.norm(v, ord).item(), x)
                np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)
                np.testing.assert_allclose(dot, want @ tangent, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_gradient_is_the_unit_vector(dtype):
    x = jnp.asarray([3.0, 0.0, -4.0], dtype)
    got = slope_of(2)(x)
    assert got.dtype == x.dtype
    np.testing.assert_allclose(o.wide(got), [0.6, 0.0, -0.8], rtol=registry.eps(dtype))


@pytest.mark.parametrize("k", [1e20, 1e-30, 1e38, 1e-37])
def test_gradient_of_extreme_values(k):
    for ord in (2, 3):
        x = np.array([0.6, 0.0, -0.8])
        want = np.sign(x) * (np.abs(x) / o.norm(x, ord).item()) ** (ord - 1)
        got = slope_of(ord)(jnp.asarray(x * k, jnp.float32))
        np.testing.assert_allclose(got, want, rtol=2e-6)
        norm = functools.partial(norms.global_norm, ord=ord)
        _, dot = jax.jvp(norm, (jnp.asarray(x * k, jnp.float32),), (jnp.ones(3),))
        np.testing.assert_allclose(dot, want.sum(), rtol=2e-5)


@pytest.mark.slow
def test_derivatives_at_zero():
    """The derivative there is 0, in both modes, and so is no NaN in the second."""

    @jax.jit
    def run(zero, tree):
        found = []
        for ord in ORDS:

            def f(v, ord=ord):
                return norms.global_norm(v, ord)

            dot = jax.jvp(f, (zero,), (jnp.ones(3),))[1]
            leafwise = jax.jacobian(lambda t, ord=ord: norms.leaf_norms(t, ord))(tree)
            found.append((jax.grad(f)(zero), dot, jax.hessian(f)(zero), leafwise))
        return found

    tree = {"a": jnp.zeros(2), "b": jnp.array([3.0, 4.0])}
    for ord, (slope, dot, hessian, leafwise) in zip(ORDS, run(jnp.zeros(3), tree), strict=True):
        with case(f"ord={ord}"):
            np.testing.assert_array_equal(slope, np.zeros(3))
            assert float(dot) == 0.0
            assert np.isfinite(hessian).all()
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(leafwise))
            assert not np.any(leafwise["a"]["a"])


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_derivatives_where_a_norm_is_not_finite(bad):
    """They are 0 in both modes; so is that of a multiple, as of parameters for a threshold."""
    x, dots = jnp.array([bad, 1.0, 3e38]), jnp.ones(3)

    @jax.jit
    def run(x):
        found = []
        for ord in ORDS:
            f = functools.partial(norms.global_norm, ord=ord)
            found += [jax.grad(f)(x), jax.jvp(f, (x,), (dots,))[1]]
        agc = jaxclip.adaptive_grad_clip(0.1)
        clipped = jax.jvp(lambda p: agc.update(dots, agc.init(p), p)[0], (x,), (dots,))[1]
        return [*found, clipped]

    for got in run(x):
        np.testing.assert_array_equal(got, np.zeros(got.shape))


def test_gradient_of_the_empty_tree():
    assert jax.grad(norms.global_norm)({}) == {}
    assert jax.grad(norms.global_norm)({"a": jnp.zeros((0, 2))})["a"].shape == (0, 2)


@pytest.mark.slow
def test_hessian_is_the_difference_quotient():
    with modes.x64():
        x = _vector()
        steps = 1e-6 * np.eye(6)

        def slopes(x):
            return [jax.grad(lambda v, ord=ord: norms.global_norm(v, ord))(x) for ord in ORDS]

        @jax.jit
        def run(x):
            sides = [jax.vmap(slopes)(x[None] + sign * steps) for sign in (1, -1)]
            quotients = jax.tree.map(lambda a, b: (a - b) / 2e-6, *sides)
            return jax.jacobian(slopes)(x), quotients

        for ord, got, want in zip(ORDS, *run(jnp.asarray(x)), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-6, err_msg=f"ord={ord}")


def test_complex_gradient():
    """JAX's convention: the conjugate of the direction of steepest ascent."""
    z = jnp.array([3 + 4j, 0j, 12j], jnp.complex64)
    got = slope_of(2)(z)
    np.testing.assert_allclose(got, np.conj(np.asarray(z)) / 13, rtol=1e-6)


def test_derivative_of_inf_norm_with_equal_largest_elements():
    slope = jax.grad(lambda x: norms.global_norm(x, float("inf")))(jnp.array([2.0, -2.0, 1.0, 2.0]))
    np.testing.assert_allclose(slope, np.array([1, -1, 0, 1]) / 3, rtol=1e-6)
