"""The recorded scalars of an update with many norms.

Devices may have norms of their own, but record the same scalars.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip._core.state import Record
from jaxclip._numerics import collectives, joining, total_order
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

_SMALL = 4096  # norms of a leaf that are joined with those of others


def of_norms(
    norms: list[Norm],
    limits: Sequence[Any],
    scaled: Callable[[Norm, jax.Array, Any], tuple[Scale, jax.Array]],
    axis_name: MeshAxes | None = None,
) -> Record:
    """The record of one update, over all norms and over the devices on which they differ.

    Args:
        norms: the norms.
        limits: their thresholds.
        scaled: `scaled(norm, its number, threshold)`, element by element, is the scale of its
            arrays and whether it counts as clipped. It is called for many norms at once.
        axis_name: mesh axes on which norms differ, besides those that types tell.
    """
    rows = []
    for value, unit, limit in _joined([(*n, c) for n, c in zip(norms, limits, strict=True)]):
        norm = Norm(value, unit)
        number = norm.number
        scale, clipped = scaled(norm, number, limit)
        rows.append((number, limit, scale.factor, scale.finite, clipped))
    return _of_rows(rows, axis_name)


def of_scales(norms: list[Norm], limits: Sequence[Any], scales: list[Scale]) -> Record:
    """The record of one update whose scales are known; those that are not 1 count as clipped."""
    trios = zip(norms, limits, scales, strict=True)
    rows = _joined([(n.number, c, s.factor, s.finite, s.over) for n, c, s in trios])
    return _of_rows(rows, None)


def _of_rows(rows: list[tuple[Any, ...]], axis_name: MeshAxes | None) -> Record:
    """The record of norms, thresholds, factors, whether norms are finite, and clipped."""
    largest_of = [(n, -jnp.asarray(c), -factor, ~finite) for n, c, factor, finite, _ in rows]
    defaults = (0.0, -unlimited(jnp.float32), -1.0, 0.0)
    norm, limit, scale, broken = largest(largest_of, defaults, axis_name)
    number, fraction = _clipped([row[-1] for row in rows], axis_name)
    return Record(norm, -limit, jnp.abs(scale), fraction, number > 0, broken > 0)


def _joined(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Rows of small arrays of one dtype as one row of vectors: few kernels for many leaves.

    On meshes they stay as they are. The first array of a row has the shape of all.
    """
    if not jax.sharding.get_abstract_mesh().empty:
        return rows
    groups: dict[Any, list[tuple[Any, ...]]] = {}
    for i, row in enumerate(rows):
        groups.setdefault((row[0].dtype, None if row[0].size <= _SMALL else i), []).append(row)
    found: list[tuple[Any, ...]] = []
    for group in groups.values():
        columns: list[Any] = list(zip(*group, strict=True))
        for k, column in enumerate(columns):
            one = column[0]
            if jnp.ndim(one) == 0 and all(x is one for x in column):
                columns[k] = one
            else:
                pairs = zip(column, group, strict=True)
                columns[k] = joining.concatenated([_raveled(x, row[0]) for x, row in pairs])
        found.append(tuple(columns))
    return found


def _raveled(x: Any, like: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    x = x if x.dtype == bool else x.astype(like.dtype)
    return jnp.ravel(jnp.broadcast_to(x, like.shape))


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
    return joining.sum_of(parts, mesh) == 0


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
    most = joining.largest_of(parts, mesh)
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
    number = joining.sum_of(parts, tuple(mesh))
    sizes = zip(clipped, mesh, strict=True)
    return number, number / float(max(sum(c.size * collectives.shards(m) for c, m in sizes), 1))


def _half_of_largest(x: jax.Array) -> jax.Array:
    """Half the largest magnitude, which of complex elements may exceed the largest float."""
    wide = accumulator(x)
    half = times(widened(x, wide), jnp.asarray(0.5, wide))
    return total_order.magnitude(jnp.abs(half))
