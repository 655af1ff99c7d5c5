"""Mesh axes: over which of them a leaf is sharded, and the sum over them.

Under `jit` there is nothing to do, XLA sees whole arrays. Inside `shard_map`, `pmap` and
`vmap(axis_name=...)` a leaf is this device's part, and sums have to cross devices. This is the only
place that calls a collective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxclip._numerics import total_order as _largest

Axes = tuple[Any, ...]

_STACKED = 64  # of the small arrays that are joined, in one


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


def check_sharded(
    arrays: Sequence[Any], axis_name: Axes | None, where: Callable[[int], str]
) -> None:
    """Raises if a leaf is known to be replicated over a mesh axis that the user named."""
    for i, x in enumerate(arrays):
        sharded_axes(x, axis_name, where(i))


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


def zeros_like_sum(
    x: jax.Array, axes: tuple[int, ...], summed: Axes, shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    """Zeros of the type of a sum of `x` over these of its axes, where types say more than a shape.

    On a mesh whose axes are Explicit they are sharded as the sum would be, and inside `shard_map`
    vary over the mesh axes that are not `summed`: what is carried by a `scan` must keep its type.
    """
    left = [name for name in varying_axes(x) if name not in summed]
    spec = jax.typeof(x).sharding.spec
    kept = [name for i, name in enumerate(spec) if name is not None and i not in axes]
    if not left and not kept:
        return jnp.zeros(shape, dtype)
    zeros = jnp.sum(jnp.zeros_like(x, dtype), axis=axes)
    return sum_over([zeros.reshape(shape)], [tuple(summed)])


def differing_axes(x: Any, axis_name: Axes | None) -> Axes:
    """The mesh axes on which devices may differ in `x`.

    Args:
        x: what is computed from leaves, each device from its own.
        axis_name: the axes over which the user says that the leaves are sharded; what JAX knows
            better is left out.
    """
    varying = varying_axes(x)
    return varying + tuple(n for n in axis_name or () if n not in varying and not _is_tracked(n))


def shards(axes: Axes) -> int:
    """The number of devices over these mesh axes."""
    return int(jax.lax.psum(1, axes)) if axes else 1


def sum_over(parts: Sequence[Any], axes: Sequence[Axes], every: Axes = ()) -> Any:
    """The sum of the parts, each over its own mesh axes, with one `psum` for all of them.

    A part that is the same along some of the axes goes in divided by the number of devices there:
    exactly, where that is a power of two.

    Args:
        parts: arrays of one shape; a few numbers each, if there are several.
        axes: the mesh axes of each part.
        every: more mesh axes for the `psum`, so that it can be one with that of other sums.
    """
    every = union([every, *axes])

    def share(part: Any, names: Axes) -> Any:
        times = shards(tuple(name for name in every if name not in names))
        return part / jnp.asarray(times, part.dtype) if times > 1 else part

    def reduced(part: Any) -> Any:
        return jax.lax.psum(_varying_over(part, every), every)

    own = [share(p, names) if names else p for p, names in zip(parts, axes, strict=True)]
    return _combine(own, axes, reduced, lambda x: jnp.sum(x, axis=0))


def max_over(parts: Sequence[Any], axes: Sequence[Axes]) -> Any:
    """The largest of the parts, each over its own mesh axes, with one `pmax` for all of them.

    NaN if one of them is NaN.
    """
    every = union(axes)

    def reduced(part: Any) -> Any:
        most = jax.lax.pmax(_largest.rank(part), every)
        return _largest.of_rank(most, part.dtype)

    return _combine(parts, axes, reduced, lambda x: _largest.element(x, (0,)))


def averaged(x: jax.Array, axis_name: Axes | None) -> jax.Array:
    """The mean of a scalar over the mesh axes on which devices may differ in it."""
    names = varying_axes(x)
    if axis_name is not None:
        names = tuple(n for n in axis_name if n in names or not _is_tracked(n))
    return jax.lax.pmean(x, names) if names else x


def union(axes: Sequence[Axes]) -> Axes:
    """All mesh axes that occur, each once."""
    return tuple(dict.fromkeys(name for names in axes for name in names))


def together(parts: Sequence[Any], whole: Callable[[jax.Array], jax.Array]) -> Any:
    """What `whole` makes along the first axis of all parts, a few numbers each, stacked.

    XLA would make one kernel of a thousand scalars and compile it for seconds. Behind the barrier
    it is handed their vector.
    """
    while len(parts) > 1:
        chunks = [parts[i : i + _STACKED] for i in range(0, len(parts), _STACKED)]
        parts = [whole(jax.lax.optimization_barrier(jnp.stack(chunk))) for chunk in chunks]
    return parts[0]


def _combine(parts: Sequence[Any], axes: Sequence[Axes], reduced: Any, whole: Any) -> Any:
    pairs = list(zip(parts, axes, strict=True))
    spread = [part for part, names in pairs if names]
    rest = [part for part, names in pairs if not names]
    crossed = [reduced(together(spread, whole))] if spread else []
    return together([*crossed, *([together(rest, whole)] if rest else [])], whole)


def _varying_over(x: jax.Array, names: Axes) -> jax.Array:
    """The same array, of a type that varies over these mesh axes where JAX knows what varies."""
    missing = [name for name in names if name not in varying_axes(x) and _is_tracked(name)]
    zeros = [jnp.zeros_like(jax.lax.axis_index(name), x.dtype) for name in missing]
    return sum(zeros, x)
