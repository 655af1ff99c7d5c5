"""Contexts with several devices: meshes, `shard_map`, and named axes of `vmap` and `pmap`.

They are called as those in `contexts`. `SHARDED` are for rules whose norm may span the shards.
"""

import functools

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.support.contexts import step

DEVICES = 4


def _mesh(axis_type):
    return jax.make_mesh(
        (DEVICES,), ("x",), axis_types=(axis_type,), devices=jax.devices()[:DEVICES]
    )


def _specs(tree):
    """Rows sharded where there are enough of them, else replicated."""
    return jax.tree.map(lambda x: P("x") if x.ndim and x.shape[0] % DEVICES == 0 else P(), tree)


def _on_mesh(rule, c, u, p, axis_type):
    mesh, specs = _mesh(axis_type), _specs(u)

    def put(tree):
        return jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), tree, specs)

    with jax.set_mesh(mesh):
        out = jax.jit(step(rule, c))(put(u), put(p))
        out = jax.block_until_ready(out)
    for x, s in zip(jax.tree.leaves(out), jax.tree.leaves(specs), strict=True):
        assert x.sharding.is_equivalent_to(NamedSharding(mesh, s), x.ndim)
    yield u, p, jax.device_get(out)


auto_mesh = functools.partial(_on_mesh, axis_type=AxisType.Auto)
explicit_mesh = functools.partial(_on_mesh, axis_type=AxisType.Explicit)


def _shard_map(rule, c, u, p, specs, check, **keywords):
    run = jax.shard_map(
        step(rule, c, **keywords), mesh=_mesh(AxisType.Auto), in_specs=(specs, specs),
        out_specs=specs, check_vma=check,
    )  # fmt: skip
    yield u, p, jax.device_get(jax.jit(run)(u, p))


def shard_map_checked(rule, c, u, p):
    """Sharded and replicated leaves; JAX's types say which, and no one has to."""
    yield from _shard_map(rule, c, u, p, _specs(u), True)


def _rows_only(tree):
    return [x for x in jax.tree.leaves(tree) if x.ndim and x.shape[0] % DEVICES == 0]


def shard_map_unchecked(rule, c, u, p):
    """Every leaf sharded, and the caller says so."""
    u, p = _rows_only(u), _rows_only(p)
    yield from _shard_map(rule, c, u, p, _specs(u), False, axis_name="x")


def vmap_axis_name(rule, c, u, p):
    """The leaves split over a named axis of `vmap`."""
    u, p = _rows_only(u), _rows_only(p)

    def split(tree):
        return jax.tree.map(lambda x: np.reshape(x, (DEVICES, -1, *x.shape[1:])), tree)

    out = jax.jit(jax.vmap(step(rule, c, axis_name="x"), axis_name="x"))(split(u), split(p))
    yield u, p, jax.tree.map(lambda x, like: np.reshape(x, like.shape), out, u)


def pmap_axis_name(rule, c, u, p):
    u, p = _rows_only(u), _rows_only(p)

    def split(tree):
        return jax.tree.map(lambda x: np.reshape(x, (DEVICES, -1, *x.shape[1:])), tree)

    out = jax.pmap(step(rule, c, axis_name="x"), "x")(split(u), split(p))
    yield u, p, jax.tree.map(lambda x, like: np.reshape(x, like.shape), out, u)


MESHES = {"auto_mesh": auto_mesh, "explicit_mesh": explicit_mesh}
SHARDED = [shard_map_checked, shard_map_unchecked, vmap_axis_name, pmap_axis_name]
