"""From what was found and done to the scalars that are recorded.

Norms may differ between devices where each device has units of its own; what is recorded may not.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxclip._core.state import Record
from jaxclip._numerics import collectives as _mesh
from jaxclip._numerics import scaled_float as _wide
from jaxclip._numerics import total_order as _largest
from jaxclip._numerics.collectives import Axes
from jaxclip._numerics.rescale import Scale
from jaxclip._numerics.scaled_float import Norm


def record(
    found: list[Norm],
    limits: list[jax.Array],
    scales: list[Scale],
    clipped: list[jax.Array],
    finite: jax.Array | None = None,
    axis_name: Axes | None = None,
) -> Record:
    """What happened, over all norms and over the devices on which they differ.

    Args:
        found: the norms.
        limits: what they were held against.
        scales: by what their arrays were multiplied.
        clipped: which were clipped.
        finite: whether all norms that were measured were finite; `None` if these are all.
        axis_name: mesh axes on which norms differ, besides those that types tell.
    """
    units = sum(c.size * _mesh.shards(_mesh.differing_axes(c, axis_name)) for c in clipped)
    number = total([jnp.sum(c, dtype=jnp.float32) for c in clipped], axis_name)
    rows = [
        (n.number, -jnp.asarray(c), -s.number, ~n.is_finite)
        for n, c, s in zip(found, limits, scales, strict=True)
    ]
    norm, limit, scale, broken = largest(rows, (0.0, -jnp.inf, -1.0, 0.0), axis_name)
    return Record(
        norm=norm,
        threshold=-limit,
        scale=-scale,
        fraction=number / float(max(units, 1)),  # beyond an int32
        clipped=number > 0,
        nonfinite=broken > 0 if finite is None else ~finite,
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
    rows = [(number, half, ~jnp.isfinite(half)) for number, half in map(_peak, arrays)]
    norm, half, broken = largest(rows, (0.0, 0.0, 0.0), axis_name)
    most = _wide.in_halves(norm, half)
    (negative,) = largest([(-jnp.asarray(c),) for c in limits], (-jnp.inf,), axis_name)
    limit = -negative
    number = total([jnp.sum(c, dtype=jnp.float32) for c in clipped], axis_name)
    elements = sum(x.size * _mesh.shards(_mesh.differing_axes(x, axis_name)) for x in arrays)
    return Record(
        norm=norm,
        threshold=limit,
        scale=jnp.where(norm > limit, limit * (1 / most.unit) / most.value, jnp.ones_like(norm)),
        fraction=number / float(max(elements, 1)),
        clipped=number > 0,
        nonfinite=broken > 0,
    )


def _peak(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest magnitude, and half of it."""
    size = _wide.magnitude(_wide.widened(x, _wide.accumulator(x)))
    number = _largest.magnitude(size.number)
    return number, _largest.magnitude(size.half) if jnp.iscomplexobj(x) else number / 2


def all_finite(found: list[Norm], axis_name: Axes | None = None) -> jax.Array:
    """Whether all norms are finite, on every device."""
    (broken,) = largest([(~n.is_finite,) for n in found], (0.0,), axis_name)
    return broken == 0


def largest(
    rows: list[tuple[jax.Array, ...]], defaults: tuple[float, ...], axis_name: Axes | None = None
) -> list[jax.Array]:
    """The largest of the first of each row, of the second, and so on; float32 scalars.

    Args:
        rows: for each norm some arrays that broadcast to the first one's shape.
        defaults: what there is without rows.
        axis_name: mesh axes on which they differ, besides those that types tell.
    """
    parts = [_largest_of_each(row) for row in rows if row[0].size]
    if not parts:
        return [jnp.full((), default, jnp.float32) for default in defaults]
    most = _mesh.max_over(parts, [_mesh.differing_axes(part, axis_name) for part in parts])
    return [most[i] for i in range(len(defaults))]


def _largest_of_each(row: tuple[jax.Array, ...]) -> jax.Array:
    like = jnp.zeros_like(row[0], jnp.float32)  # its sharding is what a mesh of Explicit axes needs
    table = jnp.stack([like + x.astype(jnp.float32) for x in row])
    return _largest.element(table, tuple(range(1, table.ndim)))


def total(parts: list[jax.Array], axis_name: Axes | None = None) -> jax.Array:
    if not parts:
        return jnp.zeros((), jnp.float32)
    return _mesh.sum_over(parts, [_mesh.differing_axes(part, axis_name) for part in parts])
