r"""Norms beyond the range of their dtype, and the multiplication by a quotient of norms.

A norm is the product of a value and a power of two, so that it is known where it overflows. The
factor $c/n$ is one float, or two where one would underflow. Sums of powers are in `power_sums`.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Norm(NamedTuple):
    """`value * unit`, so norms above the dtype's maximum stay representable.

    Attributes:
        value: finite if everything measured is finite.
        unit: a power of two.
    """

    value: jax.Array
    unit: jax.Array

    @property
    def number(self) -> jax.Array:
        """The norm as one float; `unlimited` beyond the dtype's range."""
        value, most = self.value, unlimited(self.value.dtype)
        if most < math.inf:
            within = jnp.minimum(value, most * jnp.minimum(1 / self.unit, 1))
            value = jnp.where(jnp.isfinite(value), within, value)
        return value * jax.lax.stop_gradient(self.unit)  # whose derivative, 0, times inf is NaN

    def times(self, factor: jax.Array) -> jax.Array:
        """A multiple of the norm as one float; `unlimited` of itself, and 0 of 0."""
        unit = jax.lax.stop_gradient(self.unit).astype(factor.dtype)
        most = unlimited(factor.dtype)
        known = (factor > 0) & (factor < most)
        product = jnp.where(known, factor, 1) * self.value.astype(factor.dtype) * unit
        return jnp.where(known, product, jnp.where(factor <= 0, 0, most))


class Factors(NamedTuple):
    """The factor of arrays, as two numbers of which none underflows.

    Attributes:
        first: 1, or a power of two where the factor underflows; 0 where nothing is scaled.
        second: the factor divided by `first`.
    """

    first: jax.Array
    second: jax.Array


class Scale(NamedTuple):
    """How the arrays of one norm are scaled: by `factor` where `over`, else not at all.

    Attributes:
        over: whether they are scaled.
        finite: whether the norm is finite; elsewhere nothing is scaled.
        factor: the factor as one float, 1 where not `over`; it may underflow.
        factors: the factor as it is applied.
    """

    over: jax.Array
    finite: jax.Array
    factor: jax.Array
    factors: Factors


@functools.partial(jax.jit, inline=True)
def clipped(
    norm: Norm, number: jax.Array, threshold: Any, eps: Any = None, floor: Any = None
) -> Scale:
    """The scale min(1, c / max(n + eps, floor)); 1 where the norm is not finite.

    Args:
        norm: n.
        number: n as one float.
        threshold: c >= 0, broadcastable to the norm.
        eps: added to the norm, if given.
        floor: the least divisor, if given.
    """
    c = broadcast(threshold, number)
    n = number if eps is None else number + jnp.asarray(eps).astype(number.dtype)
    return quotient(norm, number, c, n > c, eps, floor)


def quotient(
    norm: Norm,
    number: jax.Array,
    target: jax.Array,
    changes: jax.Array,
    eps: Any = None,
    floor: Any = None,
) -> Scale:
    """The scale target / max(n + eps, floor) where the norm `changes`, else 1.

    Its two factors are both at most 1, or both at least 1, so no product overflows or underflows
    on the way to a result that does neither.
    """
    one, finite = jnp.ones_like(number), jnp.isfinite(norm.value)
    over = changes & finite
    value, unit = _select(over, norm.value, one), _select(over, norm.unit, one)
    down = 1 / power_of_two_near(_select(over, number, one))
    divisor = value * (unit * down)
    if eps is not None:
        divisor = divisor + jnp.asarray(eps).astype(one.dtype) * down
    if floor is not None:
        divisor = jnp.maximum(divisor, jnp.asarray(floor).astype(one.dtype) * down)
    info = jnp.finfo(one.dtype)
    second = _select(over, target, one) / divisor
    factor = second * down
    least, most = jnp.asarray(info.tiny, one.dtype), jnp.asarray(info.max, one.dtype)
    is_normal = factor == jax.lax.clamp(least, factor, most)
    first = _select(over, _select(is_normal, one, down), jnp.zeros_like(one))
    return Scale(over, finite, factor, Factors(first, _select(is_normal, factor, second)))


@functools.partial(jax.jit, inline=True)
def apply(x: jax.Array, by: Factors) -> jax.Array:
    """The scaled array, multiplied in at least float32 and rounded once to its own dtype.

    The factor is precomputed and the selection is made in the wide dtype, so XLA fuses both into
    the consumers of the result.
    """
    wide = accumulator(x, by.second)
    value = widened(x, wide)
    scaled = times(times(value, by.first.astype(wide)), by.second.astype(wide))
    return _select(by.first > 0, scaled, value).astype(x.dtype)


def unlimited(dtype: Any) -> float:
    """The limit that no norm exceeds: inf, or under `jax.debug_infs` the largest float.

    JAX keeps a compiled program when the flag changes, so no jitted function here depends on it.
    """
    config: Any = jax.config  # whose attributes type checkers do not know
    return float(jnp.finfo(dtype).max) if config.jax_debug_infs else math.inf


def narrowed(x: jax.Array, dtype: Any, range_of: Any = None) -> jax.Array:
    """`x` in another dtype; a finite number beyond its range, or another's, becomes `unlimited`."""
    most = unlimited(dtype if range_of is None else range_of)
    if jnp.issubdtype(x.dtype, jnp.floating) and most < float(jnp.finfo(x.dtype).max):
        x = jnp.where(jnp.isfinite(x), jnp.clip(x, -most, most), x)
    return x.astype(dtype)


def accumulator(*arrays: jax.Array) -> Any:
    """The dtype in which these arrays are measured: float32, or float64 if one of them is."""
    for x in arrays:
        if jnp.finfo(x.dtype).dtype == jnp.float64:
            return jnp.dtype(jnp.float64)
    return jnp.dtype(jnp.float32)


def power_of_two_near(x: jax.Array) -> jax.Array:
    """A power of two near a positive x, a normal number with a normal reciprocal."""
    info = jnp.finfo(x.dtype)
    most = jnp.asarray(2.0 ** (info.maxexp - 2), x.dtype)
    inside = jax.lax.clamp(jnp.asarray(info.tiny, x.dtype), x, most)
    return jax.lax.stop_gradient(jax.lax.reduce_precision(inside, info.nexp, 0))


def magnitude(x: jax.Array) -> Norm:
    """`|x|` of each element of a complex array; finite for one with finite parts."""
    half = jnp.abs(times(x, jnp.full_like(jnp.real(x), 0.5)))
    return Norm(half, jnp.full_like(half, 2))


def read_apart(x: jax.Array) -> jax.Array:
    """A 16-bit array that does not share its conversion to float32 with the scaling after it.

    XLA would otherwise write the converted array to memory.
    """
    return jax.lax.optimization_barrier(x) if jnp.finfo(x.dtype).bits <= 16 else x


def opaque(x: jax.Array) -> jax.Array:
    """`x` as a number that XLA does not know: for a constant x it would make x x s s of (x s)^2.

    There x x or s s may be inf or 0.
    """
    return jax.lax.optimization_barrier(x)


def in_unit(x: jax.Array, unit: jax.Array) -> jax.Array:
    """`x / unit` in the precision of the unit; exact, since it is a power of two."""
    return times(widened(x, unit.dtype), 1 / unit)


def times(x: jax.Array, factor: jax.Array) -> jax.Array:
    """`x` times a real factor; a complex `x` part by part, so that no inf * 0 makes a NaN."""
    if jnp.iscomplexobj(x):
        return jax.lax.complex(jnp.real(x) * factor, jnp.imag(x) * factor)
    return x * factor


def hypot(x: jax.Array, y: jax.Array) -> jax.Array:
    """`jnp.hypot` of finite numbers; that function makes an inf, which `jax.debug_infs` reports."""
    x, y = jnp.abs(x), jnp.abs(y)
    most = jnp.maximum(x, y)
    share = jnp.minimum(x, y) / jnp.where(most == 0, jnp.ones_like(most), most)
    return most * jnp.sqrt(1 + share * share)


def widened(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` with its real, or its real and imaginary, parts in `dtype`."""
    if jnp.iscomplexobj(x):
        return jax.lax.complex(jnp.real(x).astype(dtype), jnp.imag(x).astype(dtype))
    return x.astype(dtype)


def broadcast(number: Any, like: jax.Array) -> jax.Array:
    """A real number or array with the shape, the dtype and the sharding of another array."""
    c = jnp.asarray(number).astype(like.dtype)
    return c * jnp.ones_like(like) if like.ndim else c


def _select(predicate: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    scalars = predicate.ndim == 0 and x.shape == y.shape
    return jax.lax.select(predicate, x, y) if scalars else jnp.where(predicate, x, y)
