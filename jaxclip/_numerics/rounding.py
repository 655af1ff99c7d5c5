"""Rounding of float32 to a narrower dtype: down, up, or to the nearest number."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp


def is_narrow(dtype: Any) -> bool:
    """Whether float32 is the dtype of computations with such numbers: 16 bits or less."""
    return jnp.finfo(dtype).bits < 32


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def rounded(x: jax.Array, dtype: Any, towards: Any = 0) -> jax.Array:
    """The float32 array `x` as numbers of a narrow `dtype`, still in float32.

    By integer arithmetic on the bits: XLA may remove a conversion to `dtype` and back. The
    derivative is 1.

    Args:
        x: a float32 array.
        dtype: a narrow dtype.
        towards: -1 to round down, 1 to round up, 0 to round to the nearest number, ties to even;
            broadcastable to `x`.
    """
    info = jnp.finfo(dtype)
    dropped = 23 - info.nmant
    rest, half = (1 << dropped) - 1, (1 << (dropped - 1)) - 1
    # Subnormal numbers of `dtype` have the spacing of the smallest normal ones, so they are moved
    # there and back.
    size, least = jnp.abs(x), jnp.asarray(info.tiny, x.dtype)
    shift = jnp.where(size < least, least, jnp.zeros_like(least))
    bits = jax.lax.bitcast_convert_type(size + shift, jnp.int32)
    outwards = towards * jnp.sign(x)
    added = jnp.where(outwards > 0, rest, jnp.where(outwards < 0, 0, half + (bits >> dropped & 1)))
    whole = jax.lax.bitcast_convert_type((bits + added) & ~rest, x.dtype) - shift
    return jnp.where(jnp.isfinite(x), jnp.copysign(whole, x), x)


@rounded.defjvp
def _rounded_jvp(dtype: Any, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return rounded(primals[0], dtype, primals[1]), tangents[0]
