"""The largest of some numbers, and NaN if one of them is NaN.

XLA's maximum may lose a NaN where it goes over devices, as on a CPU. That of whole numbers cannot,
and the bits of floating-point numbers, read as whole numbers, have their order, with NaN above inf.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def magnitude(x: jax.Array, axis: tuple[int, ...] | None = None) -> jax.Array:
    """The largest of |x|, or one along these axes, which are kept; 0 if there are none.

    Args:
        x: a float32 or float64 array.
        axis: the axes reduced; `None` for all, to a scalar.
    """
    kind = _kind(x)
    bits = jax.lax.bitcast_convert_type(jnp.abs(x), kind) & jnp.iinfo(kind).max
    bits = jnp.max(bits, axis=axis, keepdims=axis is not None, initial=0)
    return jax.lax.bitcast_convert_type(bits, x.dtype)


def element(x: jax.Array, axis: tuple[int, ...] | None = None) -> jax.Array:
    """The largest element, or one along these axes, of a float32 or float64 array.

    Args:
        x: not empty along what is reduced.
        axis: the axes reduced; `None` for all, to a scalar.
    """
    axis = tuple(range(x.ndim)) if axis is None else axis
    return of_rank(jnp.max(rank(x), axis=axis), x.dtype) if axis else x


def rank(x: jax.Array) -> jax.Array:
    """Whole numbers in the order of the floating-point ones."""
    kind = _kind(x)
    nan = np.asarray(np.nan, x.dtype).view(kind)  # one whose sign is not set
    bits = jax.lax.bitcast_convert_type(x, kind)
    return _mirrored(jnp.where(jnp.isnan(x), jnp.full_like(bits, nan), bits))


def of_rank(rank: jax.Array, dtype: Any) -> jax.Array:
    """The numbers that have these ranks."""
    return jax.lax.bitcast_convert_type(_mirrored(rank), dtype)


def _mirrored(bits: jax.Array) -> jax.Array:
    """Below 0, where the bits have the order of magnitudes, the order turned round."""
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


def _kind(x: jax.Array) -> Any:
    return jnp.int64 if x.dtype == jnp.float64 else jnp.int32
