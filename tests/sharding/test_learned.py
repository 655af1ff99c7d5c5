"""Learned rules on several devices: the result of one device, the memory the same on all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.support.learned import RULES, together

STEPS = 8
SPECS = {"kernel": P("x"), "bias": P()}
FEW = ("autoclip", "zclip", "adagc")  # of each kind of memory one


def _mesh():
    return jax.make_mesh((4,), ("x",), (AxisType.Auto,), devices=jax.devices()[:4])


def _stacked():
    rng = np.random.default_rng(2)
    size = np.exp(rng.normal(size=STEPS)) * np.array([1, 1, 1, 1, 1, 30, 1, 100])
    shapes = {"kernel": (8, 3), "bias": (3,)}
    tree = {k: rng.normal(size=(STEPS, *shape)) for k, shape in shapes.items()}
    tree = {k: np.float32(x * size.reshape(-1, *[1] * (x.ndim - 1))) for k, x in tree.items()}
    tree["kernel"][3, 5, 1] = np.nan
    return tree


def _run(*scopes, names=FEW, **keywords):
    """Scopes and rules, in one function of the updates."""
    rules = {scope: together(names, scope=scope, **keywords) for scope in scopes}

    def run(stacked):
        like = jax.tree.map(lambda x: x[0], stacked)
        return {
            scope: jax.lax.scan(lambda s, u, t=tx: t.update(u, s)[::-1], tx.init(like), stacked)
            for scope, tx in rules.items()
        }

    return run


def _same(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def _along(specs):
    """With the axis of the steps before."""
    return {k: P(None, *spec) for k, spec in specs.items()}


@pytest.mark.slow  # test_mesh_matrix has a part of it in every run
def test_sharded_and_replicated_leaves():
    """With replication checking: that the state leaves as replicated is proof that all agree."""
    stacked, run = _stacked(), _run("global", names=tuple(RULES))
    one = jax.jit(run)(stacked)
    states = jax.tree.map(lambda x: P(), {scope: state for scope, (state, _) in one.items()})
    specs = {
        scope: (states[scope], {name: _along(SPECS) for name in outs})
        for scope, (_, outs) in one.items()
    }
    mapped = jax.shard_map(run, mesh=_mesh(), in_specs=(_along(SPECS),), out_specs=specs)
    _same(jax.jit(mapped)(stacked), one)
    for state, _ in one.values():
        assert int(state["autoclip"].clipped_count) > 0
        assert int(state["autoclip"].nonfinite_count) == 1


@pytest.mark.slow
def test_axis_name():
    """Without checking, and in pmap: every device's memory, side by side."""
    kernel = {"kernel": _stacked()["kernel"]}
    one = jax.jit(_run("global"))(kernel)
    run = _run("global", axis_name="x")

    def step(kernel):
        ends = run({"kernel": kernel})
        return {
            scope: (
                jax.tree.map(lambda x: x[None], state),
                {k: o["kernel"] for k, o in out.items()},
            )
            for scope, (state, out) in ends.items()
        }

    states = jax.tree.map(lambda x: P("x"), {k: state for k, (state, _) in one.items()})
    specs = {
        scope: (states[scope], {name: P(None, "x") for name in outs})
        for scope, (_, outs) in one.items()
    }
    mapped = jax.shard_map(
        step, mesh=_mesh(), in_specs=P(None, "x"), out_specs=specs, check_vma=False
    )
    found = jax.device_get(jax.jit(mapped)(kernel["kernel"]))
    split = kernel["kernel"].reshape(STEPS, 4, 2, 3).swapaxes(0, 1)
    replicas = jax.device_get(jax.pmap(step, "x")(split))
    for scope, (state, outs) in one.items():
        for states in (found[scope][0], jax.tree.map(lambda x: x[:, 0], replicas[scope][0])):
            for a, b in zip(jax.tree.leaves(states), jax.tree.leaves(state), strict=True):
                np.testing.assert_array_equal(a, np.broadcast_to(a[:1], a.shape))
                np.testing.assert_allclose(a[0], b, rtol=1e-5)
        for name, out in outs.items():
            np.testing.assert_allclose(found[scope][1][name], out["kernel"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "scope"), [(AxisType.Auto, "global"), (AxisType.Explicit, "leaf")], ids=str
)
def test_jit_on_a_mesh(kind, scope):
    """Sharded arrays under jit: nothing to say, the same result."""
    stacked, run = _stacked(), _run(scope)
    one = jax.jit(run)(stacked)
    mesh = jax.make_mesh((4,), ("x",), (kind,), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        put = {
            k: jax.device_put(jnp.asarray(x), NamedSharding(mesh, _along(SPECS)[k]))
            for k, x in stacked.items()
        }
        _same(jax.device_get(jax.jit(run)(put)), one)
