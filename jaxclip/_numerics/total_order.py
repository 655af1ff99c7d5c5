"""The largest of some floats, and NaN if one of them is NaN.

XLA's maximum may lose a NaN where it crosses devices, as on the CPU. The maximum of integers
cannot, and the bits of floats, read as integers, have the floats' order, with NaN above inf.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def magnitude(x: jax.Array, axis: tuple[int, ...] | None = None) -> jax.Array:
    """The largest |x|; 0 without elements.

    Args:
        x: a float32 or float64 array.
        axis: the axes reduced, which stay with size 1; `None` for all, to a scalar.
    """
    return jax.lax.bitcast_convert_type(magnitude_rank(x, axis), x.dtype)


def magnitude_rank(x: jax.Array, axis: tuple[int, ...] | None = None) -> jax.Array:
    """The rank of the largest |x|: its bits, which need no mirroring."""
    integer = _integer(x)
    bits = jax.lax.bitcast_convert_type(jnp.abs(x), integer) & jnp.iinfo(integer).max
    return jnp.max(bits, axis=axis, keepdims=axis is not None, initial=0)


def largest(x: jax.Array, axis: tuple[int, ...]) -> jax.Array:
    """The largest element along axes of a float32 or float64 array that are not empty."""
    return from_rank(jnp.max(rank(x), axis=axis), x.dtype) if axis else x


def rank(x: jax.Array) -> jax.Array:
    """Integers in the order of the floats `x`."""
    integer = _integer(x)
    nan = np.asarray(np.nan, x.dtype).view(integer)  # without a sign
    bits = jax.lax.bitcast_convert_type(x, integer)
    return _mirrored(jnp.where(jnp.isnan(x), jnp.full_like(bits, nan), bits))


def from_rank(rank: jax.Array, dtype: Any) -> jax.Array:
    """The floats with these ranks."""
    return jax.lax.bitcast_convert_type(_mirrored(rank), dtype)


def _mirrored(bits: jax.Array) -> jax.Array:
    """Reverses the order below 0, where bits have the order of magnitudes."""
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


def _integer(x: jax.Array) -> Any:
    return jnp.int64 if x.dtype == jnp.float64 else jnp.int32
