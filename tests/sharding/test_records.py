"""Records on a mesh: over all devices, the same on all devices, NaN included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from jaxclip import norms
from tests.support import registry

RECORDING = {
    "clip": functools.partial(jaxclip.clip, 0.5, record=True),
    "clip_by_value": functools.partial(jaxclip.clip_by_value, -0.5, 0.5, record=True),
    "element": functools.partial(jaxclip.clip_by, 0.5, scope="element", nonfinite="nan"),
    "project_box": functools.partial(jaxclip.project_box, -0.5, 0.5, record=True),
    "project_non_negative": functools.partial(jaxclip.project_non_negative, record=True),
}


@pytest.mark.slow
def test_records_with_axis_name():
    """Every device's record is that of all, in shard_map without checking, pmap and vmap."""

    def run(u, p, **k):
        rules = {name: make(**k) for name, make in RECORDING.items()}
        both = {
            name: tx.update({"w": u}, tx.init({"w": u}), {"w": p}) for name, tx in rules.items()
        }
        return {name: (out["w"], state.scalars()) for name, (out, state) in both.items()}

    def side_by_side(u, p):
        return jax.tree.map(lambda x: x[None], run(u, p, axis_name="x"))

    mesh = jax.make_mesh((4,), ("x",), (AxisType.Auto,), devices=jax.devices()[:4])
    mapped = jax.jit(
        jax.shard_map(side_by_side, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False)
    )
    one, named = jax.jit(run), functools.partial(run, axis_name="x")
    batched, over = jax.jit(jax.vmap(named, axis_name="x")), jax.pmap(named, "x")
    p = registry.build((8, 4), seed=1) / 4
    for element in (jnp.nan, 9.0):
        u = registry.build((8, 4)).at[5, 1].set(element)
        want, split = one(u, p), [x.reshape(4, 2, 4) for x in (u, p)]
        for got in (mapped(u, p), over(*split), batched(*split)):
            for name, (out, record) in got.items():
                np.testing.assert_allclose(out.reshape(8, 4), want[name][0], rtol=2e-7)
                for key, value in record.items():
                    said = np.full(4, want[name][1][key])
                    where = f"{name} {key} of {element}"
                    np.testing.assert_allclose(value, said, rtol=1e-6, err_msg=where)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.slow)], ids=str
)
def test_nan_on_one_device_is_seen_on_all(kind):
    """XLA's own maximum of a sharded array loses it on CPUs."""
    names = {"inf": float("inf"), "3": 3, "1": 1, "2": 2}

    @jax.jit
    def run(u):
        value = jaxclip.clip(0.5, record=True)
        unit = jaxclip.clip_by(0.5, scope="unit", axis=1)
        states = {
            "clip": value.update(u, value.init(u))[1],
            "unit": unit.update(u, unit.init(u))[1],
        }
        found = {k: norms.global_norm(u, order) for k, order in names.items()}
        return found, {k: (s.norm, s.nonfinite_count) for k, s in states.items()}

    mesh = jax.make_mesh((8,), ("data",), (kind,))
    with jax.set_mesh(mesh):
        for row in (0, 3, 7):
            u = jnp.ones((8, 4)).at[row, 1].set(-jnp.nan)
            found, states = run(jax.device_put(u, NamedSharding(mesh, P("data"))))
            assert all(np.isnan(x) for x in found.values()), found
            assert all(np.isnan(n) and count == 1 for n, count in states.values()), states
