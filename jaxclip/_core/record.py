"""The recorded scalars of an update with many norms.

Devices may have norms of their own, but record the same scalars.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip._core.state import Record
from jaxclip._numerics import collectives, power_sums, total_order
from jaxclip._numerics.collectives import MeshAxes
from jaxclip._numerics.scaled_float import (
    Norm,
    Scale,
    accumulator,
    narrowed,
    times,
    unlimited,
    widened,
)


def of_scales(norms: list[Norm], limits: Sequence[Any], scales: list[Scale]) -> Record:
    """The record of one update whose scales are known; those that are not 1 count as clipped."""
    numbers = [n.number for n in norms]
    columns = map(power_sums.table_of(numbers).vectors, (numbers, limits, scales))
    return of_rows([(n, c, scale, scale.over) for n, c, scale in zip(*columns, strict=True)])


def of_rows(
    rows: Sequence[tuple[Any, Any, Scale, Any]], axis_name: MeshAxes | None = None
) -> Record:
    """The record of one update, over all norms and over the devices on which they differ.

    Args:
        rows: for arrays of norms the norms, their thresholds, their scales, and whether they count
            as clipped.
        axis_name: mesh axes on which norms differ, besides those that types tell.
    """
    worst = [(n, -jnp.asarray(c), -scale.factor, ~scale.finite) for n, c, scale, _ in rows]
    defaults = (0.0, -unlimited(jnp.float32), -1.0, 0.0)
    norm, limit, scale, broken = largest(worst, defaults, axis_name)
    number, fraction = _clipped([clipped for *_, clipped in rows], axis_name)
    return Record(norm, -limit, jnp.abs(scale), fraction, number > 0, broken > 0)


def of_elements(
    arrays: list[jax.Array],
    limits: Sequence[Any],
    clipped: list[jax.Array],
    axis_name: MeshAxes | None = None,
) -> Record:
    """The record of one update by element, over all leaves and devices.

    Args:
        arrays: the leaves.
        limits: the largest magnitudes allowed, for leaves that have a limit.
        clipped: which elements of each leaf exceed it.
        axis_name: mesh axes that shard the leaves, besides those that types tell.
    """
    halves = [_half_of_largest(x) for x in arrays]
    half, broken = largest([(h, ~jnp.isfinite(h)) for h in halves], (0.0, 0.0), axis_name)
    limit = -largest([(-jnp.asarray(c),) for c in limits], (-unlimited(jnp.float32),), axis_name)[0]
    size = Norm(half, jnp.full_like(half, 2)).number
    over = size > limit
    scale = jnp.where(over, limit / 2 / jnp.where(over, half, 1), 1)
    number, fraction = _clipped(clipped, axis_name)
    return Record(size, limit, scale, fraction, number > 0, broken > 0)


def all_finite(norms: list[Norm], axis_name: MeshAxes | None = None) -> jax.Array:
    """Whether all norms are finite, on every device."""
    return largest([(~jnp.isfinite(n.value),) for n in norms], (0.0,), axis_name)[0] == 0


def all_elements_finite(arrays: list[jax.Array], axis_name: MeshAxes | None = None) -> jax.Array:
    """Whether all elements of some leaves are finite, on every device.

    Args:
        arrays: the leaves.
        axis_name: mesh axes that shard the leaves, besides those that types tell.
    """
    parts = [(~jnp.isfinite(x).all()).astype(jnp.float32) for x in arrays]
    if not parts:
        return jnp.ones((), bool)
    mesh = tuple([collectives.differing_axes(part, axis_name) for part in parts])
    return power_sums.sum_of(parts, mesh) == 0


def largest(
    rows: Sequence[tuple[jax.Array, ...]],
    defaults: tuple[float, ...],
    axis_name: MeshAxes | None = None,
) -> list[jax.Array]:
    """The largest of the first numbers of all rows, of the second, and so on; float32 scalars.

    Args:
        rows: some arrays each, which broadcast to the shape of the first.
        defaults: the result without rows.
        axis_name: mesh axes on which they differ, besides those that types tell.
    """
    parts = [_largest_of_each(row) for row in rows if row[0].size]
    if not parts:
        return [jnp.full((), default, jnp.float32) for default in defaults]
    mesh = tuple([collectives.differing_axes(part, axis_name) for part in parts])
    most = parts[0]
    if len(parts) > 1 or mesh[0]:
        most = power_sums.largest_of(list(map(total_order.rank, parts)), mesh, jnp.float32)
    return [most[i] for i in range(len(defaults))]


def _largest_of_each(row: tuple[jax.Array, ...]) -> jax.Array:
    like = jnp.zeros_like(row[0], jnp.float32)  # sharded as a mesh of Explicit axes requires
    table = jnp.stack([like + narrowed(x, jnp.float32) for x in row])
    return total_order.largest(table, tuple(range(1, table.ndim)))


def _clipped(clipped: list[jax.Array], axis_name: MeshAxes | None) -> tuple[jax.Array, jax.Array]:
    """How many norms or elements are clipped, and their fraction."""
    if not clipped:
        return jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)
    parts = [jnp.sum(c, dtype=jnp.float32) for c in clipped]
    mesh = [collectives.differing_axes(part, axis_name) for part in parts]
    number = power_sums.sum_of(parts, tuple(mesh))
    sizes = zip(clipped, mesh, strict=True)
    return number, number / float(max(sum(c.size * collectives.shards(m) for c, m in sizes), 1))


def _half_of_largest(x: jax.Array) -> jax.Array:
    """Half the largest magnitude, which of complex elements may exceed the largest float."""
    wide = accumulator(x)
    half = times(widened(x, wide), jnp.asarray(0.5, wide))
    return total_order.magnitude(jnp.abs(half))
