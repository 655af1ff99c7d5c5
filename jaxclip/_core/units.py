"""Units: the axes that the norms of a leaf reduce, and values for slices of stacks."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip import _validate
from jaxclip._core.types import Scope


def reduced(
    scope: Scope, axis: Any, name: str, x: jax.Array, stack: int | None
) -> tuple[int, ...] | None:
    """The axes of a leaf that its norms reduce, which of a stack are axes of a slice.

    Args:
        scope: `"leaf"` or `"unit"`.
        axis: the axes that a unit reduces, or a function of a leaf's name and the leaf.
        name: the name of the leaf.
        x: the leaf.
        stack: the axis along which it stacks layers.

    Returns:
        The axes; `None` for all of a leaf that has one norm.
    """
    if scope == "leaf" and stack is None:
        return None
    own = tuple(a for a in range(x.ndim) if a != stack)
    if scope == "leaf":
        return own
    one: Any = x
    if stack is not None:
        one = jax.ShapeDtypeStruct([x.shape[a] for a in own], x.dtype)
    return tuple(own[a] for a in _unit_axes(axis, name, one))


def _unit_axes(axis: Any, name: str, x: jax.Array) -> tuple[int, ...]:
    """The axes that a unit of one leaf reduces.

    By default a unit is one output channel of a JAX kernel, (in, out) or (H, W, in, out): all axes
    but the last are reduced. A vector is one unit.
    """
    own = _validate.axes(axis(name, x)) if callable(axis) else axis
    every = tuple(range(x.ndim))
    if own is None:
        return every[:-1] or every
    if own == ():
        return ()
    return tuple(sorted({a % x.ndim for a in own if -x.ndim <= a < x.ndim})) or every


def per_slice(value: Any, shape: tuple[int, ...]) -> Any:
    """A vector of one value for each slice of a stack in the shape of the norms; others as is."""
    fits = shape != () and getattr(value, "shape", None) == (math.prod(shape),)
    return jnp.reshape(value, shape) if fits else value
