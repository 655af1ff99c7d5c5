"""Mesh axes: over which of them a leaf is sharded, and the sum over them.

Under `jit` there is nothing to do, XLA sees whole arrays. Inside `shard_map`, `pmap` and
`vmap(axis_name=...)` a leaf is this device's part, and sums have to cross devices. This is the only
place that calls a collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

Axes = tuple[Any, ...]


def varying_axes(x: Any) -> Axes:
    """The mesh axes over which JAX's type system says that `x` varies.

    JAX tracks this inside `shard_map` with `check_vma=True`; elsewhere the answer is `()`.
    """
    kind = jax.typeof(x)
    manual = getattr(kind, "manual_axis_type", None)  # JAX before 0.10 calls it `vma`
    varying = getattr(kind, "vma", ()) if manual is None else manual.varying
    return tuple(sorted(varying, key=str))


def sharded_axes(x: Any, axis_name: Axes | None, where: str) -> Axes:
    """The mesh axes over which the norm of `x` has to be summed.

    Args:
        x: a leaf.
        axis_name: `None` to go by the leaf's type, or the axes that the user named.
        where: the leaf's key path, for messages.
    """
    varying = varying_axes(x)
    if axis_name is None:
        return varying
    for name in axis_name:
        if _is_tracked(name) and name not in varying:
            raise ValueError(
                f"axis_name={name!r}: the leaf {where} is replicated over this mesh axis, so "
                "summing over it would count the leaf once per device. Leave axis_name=None "
                "inside shard_map: the axes are then found from each leaf's type"
            )
    return axis_name


def _is_tracked(name: Any) -> bool:
    """Whether JAX knows what varies over this axis. Raises where there is no such axis."""
    try:
        index = jax.lax.axis_index(name)
    except NameError as error:
        raise ValueError(
            f"axis_name={name!r} is not an axis of the mesh, pmap or vmap around this update"
        ) from error
    return name in varying_axes(index)


def gathered(x: jax.Array) -> jax.Array:
    """The same array, whole on every device of a mesh whose axes are Explicit.

    There the type says how an array is sharded, and what has several meanings for a sharded array,
    such as a product that contracts the sharded axis, is refused.
    """
    sharding = jax.typeof(x).sharding
    if not any(sharding.spec):
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))


def scattered(x: jax.Array, like: jax.Array) -> jax.Array:
    """The array `x` sharded as the type of `like` says: what undoes `gathered`."""
    sharding = jax.typeof(like).sharding
    return jax.sharding.reshard(x, sharding) if any(sharding.spec) else x


def shards(axes: Axes) -> int:
    """The number of devices over these mesh axes."""
    return int(jax.lax.psum(1, axes)) if axes else 1


def sum_over(parts: Sequence[Any], axes: Sequence[Axes]) -> Any:
    """The sum of the parts, each over its own mesh axes, with one `psum` per set of axes."""
    return _combine(parts, axes, jax.lax.psum, lambda a, b: a + b)


def max_over(parts: Sequence[Any], axes: Sequence[Axes]) -> Any:
    """The largest of the parts, each over its own mesh axes."""
    return _combine(parts, axes, jax.lax.pmax, jax.numpy.maximum)


def averaged(x: jax.Array, axis_name: Axes | None) -> jax.Array:
    """The mean of a scalar over the mesh axes on which devices may differ in it."""
    names = varying_axes(x)
    if axis_name is not None:
        names = tuple(n for n in axis_name if n in names or not _is_tracked(n))
    return jax.lax.pmean(x, names) if names else x


def _combine(parts: Sequence[Any], axes: Sequence[Axes], collective: Any, join: Any) -> Any:
    by_axes: dict[Axes, Any] = {}
    for part, names in zip(parts, axes, strict=True):
        by_axes[names] = join(by_axes[names], part) if names in by_axes else part
    total = None
    for names, part in by_axes.items():
        part = collective(part, names) if names else part
        total = part if total is None else join(total, part)
    return total
