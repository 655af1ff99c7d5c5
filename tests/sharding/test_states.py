"""Memories of units on a mesh: of the types that an update returns, from `init` on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.support import learned, registry

SPECS = {"a": P("data"), "b": P(None, "model"), "c": P("data", "model"), "d": P()}


def _mesh(kind=AxisType.Auto):
    return jax.make_mesh((4, 2), ("data", "model"), (kind,) * 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "scope"), [(AxisType.Explicit, "unit"), (AxisType.Auto, "element")], ids=str
)
def test_state_of_units_is_a_type_fixed_point(kind, scope):
    """In a scan, and donated: sharded as the norms are. The numbers are those of one device."""
    keys = SPECS if scope == "unit" else "c"
    u = {key: registry.build((8, 4), seed=i) for i, key in enumerate(keys)}
    tx = learned.together(("autoclip", "adagc", "stabilize_gradient"), scope=scope)

    def steps(u):
        def body(state, factor):
            out, state = tx.update(jax.tree.map(lambda x: x * factor, u), state)
            return state, out

        return jax.lax.scan(body, tx.init(u), jnp.array([1.0, 2.0, 0.5, 30.0, 1.0]))

    one, mesh = jax.jit(steps)(u), _mesh(kind)
    with jax.set_mesh(mesh):
        put = {k: jax.device_put(x, NamedSharding(mesh, SPECS[k])) for k, x in u.items()}
        many = jax.device_get(jax.jit(steps)(put))
        before = jax.jit(tx.init)(put)
        types = [(jax.typeof(x), x.sharding) for x in jax.tree.leaves(before)]
        _, after = jax.jit(tx.update, donate_argnums=1)(put, before)
    for (kind_of, sharding), x in zip(types, jax.tree.leaves(after), strict=True):
        assert jax.typeof(x) == kind_of
        assert kind is AxisType.Auto or x.sharding.is_equivalent_to(sharding, x.ndim)
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5)


@pytest.mark.slow
def test_state_of_units_varies_in_shard_map():
    """Each device has its own units; a scan needs types that say so from the first state on."""
    u, tx = registry.build((4, 8)), learned.together(scope="unit", axis_name=())
    whole = learned.together(scope="unit")

    def steps(tx, u):
        def body(state, factor):
            return tx.update(u * factor, state)[::-1]

        return jax.lax.scan(body, tx.init(u), jnp.array([1.0, 2.0, 30.0, 1.0]))[1]

    mapped = jax.shard_map(
        functools.partial(steps, tx),
        mesh=_mesh(),
        in_specs=P(None, "data"),
        out_specs=P(None, None, "data"),
    )
    want = jax.jit(functools.partial(steps, whole))(u)
    for name, got in jax.jit(mapped)(u).items():
        np.testing.assert_allclose(got, want[name], rtol=1e-5, err_msg=name)
