"""Numbers of many leaves as one: sums, the largest, and vectors of them, on one device or a mesh.

Without a barrier XLA would make one kernel of a thousand scalars, and compile it for seconds. So
they are joined in chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip._numerics import collectives, total_order
from jaxclip._numerics.collectives import MeshAxes

_STACKED = 64  # arrays in one kernel


def largest_of(parts: list[jax.Array], mesh: tuple[MeshAxes, ...] | None) -> jax.Array:
    """The largest of some arrays of one shape, each over its mesh axes; NaN if one is NaN."""

    def largest(x: jax.Array, axis: int) -> jax.Array:
        return total_order.largest(x, (axis,))

    return _over_mesh(parts, mesh, largest, collectives.max_over)


def sum_of(
    parts: list[jax.Array], mesh: tuple[MeshAxes, ...] | None, every: MeshAxes = ()
) -> jax.Array:
    """The sum of some arrays of one shape, each over its mesh axes."""
    if mesh is None:
        return joined(parts, jnp.sum)
    return _over_mesh(parts, mesh, jnp.sum, lambda sums: collectives.sum_over(sums, every))


def _over_mesh(parts: Any, mesh: Any, reduce: Any, across: Any) -> jax.Array:
    """Reduces the parts of each mesh axes on their device, and then the results across devices."""
    if mesh is None or not any(mesh):
        return joined(parts, reduce)
    groups: dict[MeshAxes, list[jax.Array]] = {}
    for part, axes in zip(parts, mesh, strict=True):
        groups.setdefault(axes, []).append(part)
    return across({axes: joined(own, reduce) for axes, own in groups.items()})


def joined(parts: list[jax.Array], reduce: Callable[[jax.Array, int], jax.Array]) -> jax.Array:
    """Small arrays of one shape, reduced to one."""
    while len(parts) > 1:
        chunks = [parts[i : i + _STACKED] for i in range(0, len(parts), _STACKED)]
        parts = [reduce(jax.lax.optimization_barrier(jnp.stack(chunk)), 0) for chunk in chunks]
    return parts[0]


def concatenated(parts: list[jax.Array]) -> jax.Array:
    """Vectors in one."""
    while len(parts) > 1:
        chunks = [parts[i : i + _STACKED] for i in range(0, len(parts), _STACKED)]
        parts = [jax.lax.optimization_barrier(jnp.concatenate(chunk)) for chunk in chunks]
    return parts[0]
