"""From what was found and done to the scalars that are recorded.

Norms may differ between devices where each device has units of its own; what is recorded may not.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxclip import _mesh, _wide
from jaxclip._mesh import Axes
from jaxclip._scaling import Scale
from jaxclip._state import Record
from jaxclip._wide import Norm


def record(
    found: list[Norm],
    limits: list[jax.Array],
    scales: list[Scale],
    clipped: list[jax.Array],
    finite: jax.Array,
    axis_name: Axes | None = None,
) -> Record:
    """What happened, over all norms and over the devices on which they differ.

    `axis_name` are mesh axes on which they differ, besides those that types tell.
    """
    units = sum(c.size * _mesh.shards(_mesh.differing_axes(c, axis_name)) for c in clipped)
    number = total([jnp.sum(c, dtype=jnp.float32) for c in clipped], axis_name)
    return Record(
        norm=largest([n.number for n in found], 0.0, axis_name),
        threshold=-largest([-jnp.asarray(c) for c in limits], -jnp.inf, axis_name),
        scale=-largest([-s.number for s in scales], -1.0, axis_name),
        fraction=number / float(max(units, 1)),  # beyond an int32
        clipped=number > 0,
        nonfinite=~finite,
    )


def of_elements(
    arrays: list[jax.Array],
    limits: list[Any],
    clipped: list[jax.Array],
    axis_name: Axes | None = None,
) -> Record:
    """What happened to single elements, over all leaves and devices.

    Args:
        arrays: the leaves.
        limits: how large a magnitude may be, for leaves that have a limit.
        clipped: which elements of each leaf were beyond it.
        axis_name: the mesh axes over which the leaves are sharded, besides those that types tell.
    """
    wide = [jnp.abs(x).astype(_wide.accumulator(x)) for x in arrays]
    sizes = [_wide.of(_mesh.largest_magnitude(x)) for x in wide]
    norm = largest([size.number for size in sizes], 0.0, axis_name)
    limit = -largest([-jnp.asarray(c) for c in limits], -jnp.inf, axis_name)
    number = total([jnp.sum(c, dtype=jnp.float32) for c in clipped], axis_name)
    elements = sum(x.size * _mesh.shards(_mesh.differing_axes(x, axis_name)) for x in arrays)
    return Record(
        norm=norm,
        threshold=limit,
        scale=jnp.where(norm > limit, limit / norm, jnp.ones_like(norm)),
        fraction=number / float(max(elements, 1)),
        clipped=number > 0,
        nonfinite=~all_finite(sizes, axis_name),
    )


def all_finite(found: list[Norm], axis_name: Axes | None = None) -> jax.Array:
    """Whether all norms are finite, on every device."""
    return largest([~n.is_finite for n in found], 0.0, axis_name) == 0


def largest(parts: list[jax.Array], default: float, axis_name: Axes | None = None) -> jax.Array:
    parts = [_mesh.largest_element(part.astype(jnp.float32)) for part in parts if part.size]
    if not parts:
        return jnp.full((), default, jnp.float32)
    return _mesh.max_over(parts, [_mesh.differing_axes(part, axis_name) for part in parts])


def total(parts: list[jax.Array], axis_name: Axes | None = None) -> jax.Array:
    if not parts:
        return jnp.zeros((), jnp.float32)
    return _mesh.sum_over(parts, [_mesh.differing_axes(part, axis_name) for part in parts])
