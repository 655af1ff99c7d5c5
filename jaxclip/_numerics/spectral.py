"""Bounds the singular values of matrices: exactly by `eigh`, or by matrix products alone."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip._numerics.rounding import is_narrow, rounded
from jaxclip._numerics.scaled_float import Norm, power_of_two_near

# A step of Newton and Schulz multiplies a small singular value by 15/8 and squares the distance of
# a large one to 1: 30 steps bring 1e-7 of the largest one to 1.
_STEPS = 30
_SQUARINGS = 20

# The largest singular value lands at most this many roundings above c: measured 16 by eigh and 5 by
# products, for up to 512 columns and values up to a thousand times c.
_ROUNDINGS = 32

# 16-bit matrices land this many epsilons below c, since rounding adds a matrix of that norm.
_MARGIN = 1.0


def bounded(
    x: jax.Array, c: jax.Array, dtype: Any, how: str, method: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether the largest singular values are at most c; the bounded matrices; and those values.

    The first and the last have the shape (matrices, 1, 1).

    Args:
        x: an array of shape (matrices, rows, columns) in at least float32.
        c: the limit, a scalar >= 0.
        dtype: the dtype that stores the array.
        how: `clip` reduces only the singular values above c, which gives the nearest matrix;
            `scale` multiplies all of them by one factor.
        method: `eigh`, `iterative`, or `None` for the first on a CPU and the second elsewhere.
    """
    if not x.size:
        one = jnp.ones((len(x), 1, 1), x.dtype)
        return one > 0, x, 0 * one
    wide = x.shape[1] < x.shape[2]
    tall = _transposed(x) if wide else x
    size = jnp.max(jnp.abs(tall), (1, 2), keepdims=True)
    good = (size > 0) & jnp.isfinite(size)
    unit = power_of_two_near(jnp.where(good, size, jnp.ones_like(size)))
    work = jnp.where(good, tall * (1 / unit), jnp.zeros_like(tall))  # squares stay in range

    margin = _MARGIN * float(jnp.finfo(dtype).eps) if is_narrow(dtype) else 0.0
    limit = Norm(c, 1 / unit).number * (1 - margin)
    slack = (1 + _ROUNDINGS * float(jnp.finfo(x.dtype).eps)) / (1 - margin) - 1

    def by(name: str) -> Any:
        return lambda a, limit: _bounded(a, limit, slack, how, name)

    if method is None:
        found = jax.lax.platform_dependent(work, limit, cpu=by("eigh"), default=by("iterative"))
    else:
        found = by(method)(work, limit)
    keep, value, largest = found
    value = jnp.where(limit > 0, value, jnp.zeros_like(value))  # rounding may leave a rest
    value = (_transposed(value) if wide else value) * unit
    value = rounded(value, dtype) if is_narrow(dtype) else value
    return keep | ~good, value, jnp.where(good, largest * unit, size)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _bounded(
    a: jax.Array, c: jax.Array, slack: float, how: str, method: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return _landed(a, c, slack, how, method)


@_bounded.defjvp
def _bounded_jvp(
    slack: float, how: str, method: str, primals: Any, tangents: Any
) -> tuple[Any, Any]:
    """The derivative by matrix products, for `eigh` too.

    The derivative of eigenvectors is infinite where eigenvalues coincide, as clipped ones do.
    """
    out, change = jax.jvp(lambda a, c: _landed(a, c, slack, how, "iterative"), primals, tangents)
    return (out if method == "iterative" else _bounded(*primals, slack, how, method)), change


def _landed(
    a: jax.Array, c: jax.Array, slack: float, how: str, method: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    gram = _times(_transposed(a), a)
    largest, clip = _exact(gram) if method == "eigh" else _iterative(gram)
    keep = largest / (1 + slack) <= c

    def land() -> jax.Array:
        if how == "scale":
            return a * (c / largest)
        # Twice, since a singular value far below the largest one is known to fewer digits.
        once = clip(a, c)
        again = _times(_transposed(once), once)
        return (_exact(again) if method == "eigh" else _iterative(again))[1](once, c)

    return keep, jax.lax.cond(jnp.all(keep), lambda: a, land), largest


def _exact(gram: jax.Array) -> tuple[jax.Array, Any]:
    """The largest singular values, and a function that clips all, by eigenvectors."""
    squares, vectors = jnp.linalg.eigh(gram, symmetrize_input=False)
    values = jnp.sqrt(jnp.maximum(squares, jnp.zeros_like(squares)))[:, None]

    def clip(a: jax.Array, c: jax.Array) -> jax.Array:
        over = values > c
        factor = jnp.where(over, c / jnp.where(over, values, jnp.ones_like(values)), 1)
        return _times(_times(a, vectors) * factor.astype(a.dtype), _transposed(vectors))

    return values[..., -1:], clip


def _iterative(gram: jax.Array) -> tuple[jax.Array, Any]:
    """The same by matrix products alone."""
    largest = _largest(gram)

    def clip(a: jax.Array, c: jax.Array) -> jax.Array:
        # For a singular value s: min(s, c) = (s + c - |s - c|) / 2. With the orthogonal factor O of
        # a = O H, the matrix |H - c| is (H - c) sign(H - c).
        polar = _sign(a)
        above = _times(_transposed(polar), a) - c * jnp.eye(a.shape[-1], dtype=a.dtype)[None]
        side = _sign((above + _transposed(above)) / 2)
        return (a + c * polar - _times(a - c * polar, side)) / 2

    return largest, clip


def _largest(gram: jax.Array) -> jax.Array:
    """The root of the largest eigenvalue, as a mean weighted by a high power of the matrix."""

    def squared(_: Any, power: jax.Array) -> jax.Array:
        power = power / jnp.maximum(jnp.sqrt(_sum(power * power)), jnp.finfo(power.dtype).tiny)
        return _times(power, power)

    power = jax.lax.fori_loop(0, _SQUARINGS, squared, gram)
    weight = jnp.trace(power, axis1=1, axis2=2)[:, None, None]
    weight = jnp.where(weight > 0, weight, jnp.ones_like(weight))
    return jnp.sqrt(jnp.maximum(_sum(power * gram) / weight, jnp.zeros_like(weight)))


def _sign(x: jax.Array) -> jax.Array:
    """The matrices with the same singular vectors, or eigenvectors, and all values 1 in size."""
    square = _sum(x * x)
    x = x / jnp.sqrt(jnp.where(square > 0, square, jnp.ones_like(square)))

    def step(_: Any, x: jax.Array) -> jax.Array:
        square = _times(_transposed(x), x)
        inner = -10 * square + 3 * _times(square, square)
        return (15 * x + _times(x, inner)) / 8

    return jax.lax.fori_loop(0, _STEPS, step, x)


def _times(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _transposed(a: jax.Array) -> jax.Array:
    return jnp.swapaxes(a, 1, 2)


def _sum(x: jax.Array) -> jax.Array:
    """The sum of the elements of each matrix, of shape (matrices, 1, 1)."""
    return jnp.sum(x, (1, 2), keepdims=True)
