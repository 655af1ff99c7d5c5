"""Mesh axes: those that shard a leaf, and the sum over them. No other module calls a collective.

Under `jit` XLA sees whole arrays and there is nothing to do. Inside `shard_map`, `pmap` and
`vmap(axis_name=...)` a leaf is the part on one device, and sums must cross devices.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxclip._numerics import total_order

MeshAxes = tuple[Any, ...]
_APART: contextvars.ContextVar[MeshAxes] = contextvars.ContextVar("_APART", default=())


@contextlib.contextmanager
def apart(axes: MeshAxes) -> Generator[None, None, None]:
    """Along these mesh axes each device has examples of its own: nothing is summed over them."""
    token = _APART.set((*_APART.get(), *axes))
    try:
        yield
    finally:
        _APART.reset(token)


def varying_axes(x: Any) -> MeshAxes:
    """The mesh axes over which `x` varies by its type.

    JAX tracks them inside `shard_map` with `check_vma=True`; elsewhere there are none. Those that
    devices are `apart` along are left out.
    """
    kind = jax.typeof(x)
    manual = getattr(kind, "manual_axis_type", None)  # JAX before 0.10 calls it `vma`
    varying = getattr(kind, "vma", ()) if manual is None else manual.varying
    return tuple(sorted(set(varying).difference(_APART.get()), key=str))


def sharded_axes(x: Any, axis_name: MeshAxes | None, where: str) -> MeshAxes:
    """The mesh axes over which the norm of `x` is summed.

    Args:
        x: a leaf.
        axis_name: the axes that the user named, or `None` for those of the leaf's type.
        where: the leaf's key path, for errors.
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


def may_vary(x: Any, name: Any) -> bool:
    """Whether `x` may differ between the devices along a mesh axis."""
    return name in varying_axes(x) or not _is_tracked(name)


def check_varying(x: jax.Array, axes: MeshAxes, where: str) -> None:
    """Raises where JAX has added up the gradients of the examples on several devices.

    Args:
        x: a leaf of the gradient of one example.
        axes: the mesh axes that split the examples.
        where: the leaf's key path, for errors.
    """
    for name in axes:
        if not may_vary(x, name):
            raise ValueError(
                f"the gradient at {where} is the same on all devices along the mesh axis {name!r}, "
                "which splits the examples: jax.grad has added it up, since the parameter does not "
                f"vary there. Take gradients of jax.lax.pcast(params, {name!r}, to='varying')"
            )


def differing_axes(x: Any, axis_name: MeshAxes | None) -> MeshAxes:
    """The mesh axes over which `x`, computed from leaves, may differ between devices.

    Args:
        x: an array.
        axis_name: the axes that the user named; JAX's types overrule them.
    """
    varying = varying_axes(x)
    return varying + tuple(n for n in axis_name or () if n not in varying and not _is_tracked(n))


def _is_tracked(name: Any) -> bool:
    """Whether JAX's types say which arrays vary over this axis. Raises for an unknown axis."""
    try:
        index = jax.lax.axis_index(name)
    except NameError as error:
        raise ValueError(
            f"axis_name={name!r} is not an axis of the mesh, pmap or vmap around this update"
        ) from error
    return name in varying_axes(index)


def shards(axes: MeshAxes) -> int:
    """The number of devices over these mesh axes."""
    return int(jax.lax.psum(1, axes)) if axes else 1


def sum_over(parts: Mapping[MeshAxes, jax.Array], every: MeshAxes = ()) -> jax.Array:
    """The sum of the parts, each over its mesh axes, by one `psum`.

    A part that is replicated along some of the axes is first divided by the number of devices
    there: exactly, where that is a power of two.

    Args:
        parts: arrays of one shape, by the mesh axes over which they are summed; `()` not alone.
        every: more mesh axes for the `psum`, so that XLA can join it with other sums.
    """
    every = union([every, *parts])
    crossing: list[jax.Array] = []
    for axes, part in parts.items():
        replicas = shards(tuple(name for name in every if name not in axes))
        if axes:
            crossing.append(part / jnp.asarray(replicas, part.dtype) if replicas > 1 else part)
    total = jax.lax.psum(_varying(functools.reduce(jnp.add, crossing), every), every)
    return total + parts[()] if () in parts else total


def max_over(parts: Mapping[MeshAxes, jax.Array]) -> jax.Array:
    """The largest of the parts, integers each over its mesh axes, by one `pmax`."""
    crossing = [part for axes, part in parts.items() if axes]
    most = jax.lax.pmax(functools.reduce(jnp.maximum, crossing), union(parts))
    return jnp.maximum(most, parts[()]) if () in parts else most


def sums(tree: Any, axes: MeshAxes) -> Any:
    """The sum of each array of a tree over mesh axes, by one `psum`."""
    if not axes:
        return tree
    return jax.lax.psum(jax.tree.map(lambda x: _varying(x, axes), tree), axes)


def maxima(tree: Any, axes: MeshAxes) -> Any:
    """The largest of each array of a tree over mesh axes; NaN if one is NaN."""

    def largest(x: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return total_order.from_rank(largest(total_order.rank(x)), x.dtype)
        return jax.lax.pmax(_varying(x, axes), axes)

    return jax.tree.map(largest, tree) if axes else tree


def averaged(x: jax.Array, axis_name: MeshAxes | None) -> jax.Array:
    """The mean of a scalar over the mesh axes on which devices may differ."""
    names = varying_axes(x)
    if axis_name is not None:
        names = tuple(n for n in axis_name if n in names or not _is_tracked(n))
    return jax.lax.pmean(x, names) if names else x


def union(axes: Iterable[MeshAxes]) -> MeshAxes:
    """All mesh axes, each once."""
    return tuple(dict.fromkeys(name for names in axes for name in names))


def _varying(x: jax.Array, names: MeshAxes) -> jax.Array:
    """The same array with a type that varies over these mesh axes, where JAX tracks them."""
    missing = [name for name in names if name not in varying_axes(x) and _is_tracked(name)]
    zeros = [jnp.zeros_like(jax.lax.axis_index(name), x.dtype) for name in missing]
    return sum(zeros, x)


def gathered(x: jax.Array) -> jax.Array:
    """The array `x` whole on every device of a mesh with Explicit axes.

    JAX refuses an ambiguous operation on a sharded array there, such as a product that contracts
    the sharded axis.
    """
    sharding = jax.typeof(x).sharding
    if not any(sharding.spec):
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))


def zeros_like_sum(
    x: jax.Array, axes: Sequence[int], summed: MeshAxes, shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    """Zeros with the type of a sum of `x` over these axes, since `scan` must keep a carry's type.

    On a mesh with Explicit axes they are sharded as the sum would be; inside `shard_map` they vary
    over the mesh axes that are not `summed`.
    """
    left = [name for name in varying_axes(x) if name not in summed]
    spec = jax.typeof(x).sharding.spec
    kept = [name for i, name in enumerate(spec) if name is not None and i not in axes]
    if not left and not kept:
        return jnp.zeros(shape, dtype)
    zeros = jnp.sum(jnp.zeros_like(x, dtype), axis=tuple(axes)).reshape(shape)
    return sum_over({tuple(summed): zeros}) if summed else zeros


def like(shape: Any, value: Any) -> jax.Array:
    """An array of one value with the type of another, given by `jax.eval_shape`."""
    filled = jnp.full(shape.shape, value, shape.dtype)
    return _varying(filled, varying_axes(shape))


def split_as(rows: Sequence[jax.Array], flags: jax.Array) -> tuple[jax.Array, int]:
    """Flags, one for each row, which a mesh with Explicit axes splits as the rows; its devices."""
    for x in rows:
        sharding = jax.typeof(x).sharding
        if sharding.spec and sharding.spec[0] is not None:
            split = NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0]))
            devices = len(flags) // split.shard_shape(flags.shape)[0]
            return jax.sharding.reshard(flags, split), devices
    return flags, 1
