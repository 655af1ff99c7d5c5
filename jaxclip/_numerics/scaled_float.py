"""What norms are measured in: at least float32, and beyond its range by a unit.

A norm is known also where it overflows: as a value times a power of two.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Norm(NamedTuple):
    """The number `value * unit`, also where that product overflows. `unit` is a power of two."""

    value: jax.Array
    unit: jax.Array

    @property
    def number(self) -> jax.Array:
        """The norm as one float; inf if it is beyond the dtype's range."""
        return self.value * self.unit

    @property
    def half(self) -> jax.Array:
        """Half the norm as one float, which reaches twice as far."""
        return self.value * (self.unit / 2)

    @property
    def is_finite(self) -> jax.Array:
        """Whether everything measured was finite."""
        return jnp.isfinite(self.value)

    def times(self, factor: jax.Array) -> jax.Array:
        """A multiple of the norm as one float: inf of inf and 0 of 0, whatever the norm."""
        value, unit = self.value.astype(factor.dtype), self.unit.astype(factor.dtype)
        product = jnp.where(factor > 0, factor * value * unit, jnp.zeros_like(factor * value))
        return jnp.where(factor < jnp.inf, product, jnp.full_like(product, jnp.inf))

    def divided_by(self, divisor: float) -> Norm:
        """The norm divided by a positive constant."""
        return Norm(self.value / jnp.asarray(divisor, self.value.dtype), self.unit)


def accumulator(*arrays: jax.Array) -> Any:
    """The dtype in which these arrays are measured: float32, or float64 if one of them is."""
    wide = any(jnp.finfo(x.dtype).dtype == jnp.float64 for x in arrays)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def power_of_two_near(x: jax.Array) -> jax.Array:
    """A power of two near a positive x whose reciprocal is a normal number as well."""
    info = jnp.finfo(x.dtype)
    power = jax.lax.reduce_precision(x, info.nexp, 0)
    power = jnp.clip(power, float(info.tiny), 2.0 ** (info.maxexp - 2))
    return jax.lax.stop_gradient(power)


def of(number: jax.Array) -> Norm:
    """A norm given as one float."""
    return Norm(number, jnp.ones_like(number))


def in_unit(x: jax.Array, unit: jax.Array) -> jax.Array:
    """`x / unit` in the accumulator's precision; exact, since the unit is a power of two."""
    return times(widened(x, unit.dtype), 1 / unit)


def magnitude(x: jax.Array) -> Norm:
    """`|x|` of each element; of a complex one also where only its parts are within the range."""
    if not jnp.iscomplexobj(x):
        return of(jnp.abs(x))
    part = jnp.maximum(jnp.abs(jnp.real(x)), jnp.abs(jnp.imag(x)))
    one, most = jnp.ones_like(part), 2.0 ** (jnp.finfo(part.dtype).maxexp - 1)
    unit = jnp.where(part < most, one, 2 * one)
    return Norm(jnp.abs(times(x, 1 / unit)), unit)


def in_halves(number: jax.Array, half: jax.Array) -> Norm:
    """The norm of which this is the number, and this half of it."""
    one, fits = jnp.ones_like(number), number < jnp.inf
    return Norm(jnp.where(fits, number, half), jnp.where(fits, one, 2 * one))


def times(x: jax.Array, factor: jax.Array) -> jax.Array:
    """`x` times a real factor; a complex `x` part by part, so that no inf * 0 makes a NaN."""
    if jnp.iscomplexobj(x):
        return jax.lax.complex(jnp.real(x) * factor, jnp.imag(x) * factor)
    return x * factor


def widened(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` with its real, or its real and imaginary, parts in `dtype`."""
    if jnp.iscomplexobj(x):
        return jax.lax.complex(jnp.real(x).astype(dtype), jnp.imag(x).astype(dtype))
    return x.astype(dtype)
