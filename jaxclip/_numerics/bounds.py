"""Bounds: the norm that a norm becomes, bounded by its threshold, smoothly, or set to it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip._numerics.scaled_float import (
    Norm,
    Scale,
    broadcast,
    clipped,
    power_of_two_near,
    quotient,
)


@functools.partial(jax.jit, inline=True)
def exactly(
    norm: Norm, number: jax.Array, threshold: Any, eps: Any = None, floor: Any = None
) -> Scale:
    """The scale c / max(n + eps, floor), up or down; 1 where n is 0 or c the largest float."""
    c = broadcast(threshold, number)
    changes = (number > 0) & (c < float(jnp.finfo(c.dtype).max)) & (number != c)
    return quotient(norm, number, c, changes, eps, floor)


@functools.partial(jax.jit, inline=True)
def tanh(
    norm: Norm, number: jax.Array, threshold: Any, eps: Any = None, floor: Any = None
) -> Scale:
    r"""The scale to a norm of $c \tanh(n / c)$."""
    n, c = number, broadcast(threshold, number)
    ratio, is_finite = _ratio(norm, c)
    small = ratio < float(jnp.finfo(n.dtype).eps) ** 0.5  # tanh(x) rounds to x
    reached = jnp.where(small, n, c * jnp.tanh(jnp.where(small, jnp.ones_like(n), ratio)))
    return clipped(norm, n, jnp.where(is_finite, reached, c), eps, floor)


@functools.partial(jax.jit, inline=True)
def rational(
    norm: Norm, number: jax.Array, threshold: Any, eps: Any = None, floor: Any = None
) -> Scale:
    """The scale to a norm of $n c / (n + c)$."""
    n, c = number, broadcast(threshold, number)
    ratio, is_finite = _ratio(norm, c)
    one, small = jnp.ones_like(n), ratio <= 1
    reached = jnp.where(small, n / (one + ratio), c / (one + one / jnp.where(small, one, ratio)))
    return clipped(norm, n, jnp.where(is_finite, reached, c), eps, floor)


BOUNDS = {"hard": clipped, "tanh": tanh, "rational": rational, "set": exactly}


def _ratio(norm: Norm, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """N / c, and where c is a normal number; 0 elsewhere."""
    info = jnp.finfo(c.dtype)
    normal = (c >= float(info.tiny)) & (c < float(info.max))
    divisor = jnp.where(normal, c, jnp.ones_like(c))
    # By a power of two, since the reciprocal of c, which XLA may take, can underflow. The barrier
    # keeps XLA from joining the two.
    down = jax.lax.optimization_barrier(1 / power_of_two_near(divisor))
    inside = jnp.where(normal, norm.value, jnp.zeros_like(c))
    return inside * (norm.unit * down) / (divisor * down), normal
