"""Rounding to narrow dtypes, against the conversions of `ml_dtypes` and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip._numerics.rounding import is_narrow, rounded
from tests.support import modes

DTYPES = [jnp.bfloat16, jnp.float16, jnp.float8_e5m2]


def numbers(dtype):
    """Ordinary numbers, subnormal ones, ties, the largest of the dtype, and zeros."""
    info, rng = jnp.finfo(dtype), np.random.default_rng(0)
    scales = 10.0 ** rng.uniform(-8, 4, 5000)
    least, eps = float(info.smallest_subnormal), float(info.eps)
    odd = [0.0, -0.0, 1 + eps / 2, 1 + 1.5 * eps, -1 - eps / 2, float(info.max)]
    odd += [least * 1.25, -least * 2.5, least * 0.5] if dtype != jnp.bfloat16 else []
    x = np.concatenate([rng.normal(size=5000) * scales, odd]).astype(np.float32)
    return x[(np.abs(x) <= float(info.max)) & ((np.abs(x) > least / 4) | (x == 0))]


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rounded(dtype, compiled):
    """To the next number of the dtype below, above, and nearest; ties and signs of 0 as there."""
    size = np.dtype(dtype).itemsize
    every = np.arange(256**size).astype(f"uint{8 * size}").view(dtype).astype(np.float32)
    every = np.unique(every[np.isfinite(every)])
    x = numbers(dtype)
    below, above = np.searchsorted(every, x, "right") - 1, np.searchsorted(every, x, "left")
    wanted = {-1: every[below], 0: x.astype(dtype).astype(np.float32), 1: every[above]}
    run = jax.jit(rounded, static_argnums=1) if compiled else rounded
    for towards, want in wanted.items():
        np.testing.assert_array_equal(run(x, dtype, towards), want)
    signs = np.signbit(run(x, dtype, 0))
    np.testing.assert_array_equal(signs, np.signbit(x))


def test_what_is_not_finite_stays():
    full = np.asarray([2**31 - 1], np.int32).view(np.float32)  # a NaN of ones alone
    x = np.concatenate([np.asarray([np.nan, np.inf, -np.inf], np.float32), full])
    for towards in (-1, 0, 1):
        np.testing.assert_array_equal(rounded(x, jnp.float16, towards), x)


def test_derivative_is_one():
    """Of each direction, and of numbers that are rounded to 0."""
    x = jnp.asarray([1.3, 0.0, -1e-30, 70.0])
    for towards in (-1.0, 0.0, 1.0):
        slope = jax.grad(lambda x, t=towards: jnp.sum(rounded(x, jnp.float16, t)))(x)
        np.testing.assert_array_equal(slope, np.ones(4))


def test_is_narrow():
    found = [is_narrow(dtype) for dtype in (*DTYPES, jnp.float32, jnp.complex64)]
    with modes.x64():
        found.append(is_narrow(jnp.float64))
    assert found == [True, True, True, False, False, False]
