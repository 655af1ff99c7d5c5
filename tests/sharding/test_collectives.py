"""How many collectives an update runs: one small all-reduce, whatever the number of leaves.

A guard that looks at the step, which needs the norm, has to wait for it and takes a second one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.support import collectives

pytestmark = pytest.mark.relaxed  # Adam of Optax promotes

ONE = {"all-reduce": 1}


def four_labels(tree):
    return {key: str(i % 4) for i, key in enumerate(tree)}


RULES = {
    "alone": lambda: jaxclip.clip_by_global_norm(1.0),
    "guarded": lambda: jaxclip.skip_nonfinite(
        optax.chain(jaxclip.clip_by_global_norm(1.0), optax.adam(1e-3))
    ),
    "monitored": lambda: optax.chain(jaxclip.monitor(), jaxclip.clip_by_global_norm(1.0)),
    "skip_spikes": lambda: jaxclip.skip_spikes(jaxclip.clip_by_global_norm(1.0)),
    "zclip": jaxclip.zclip,
    "clip_by_block_rms": lambda: jaxclip.clip_by_block_rms(1.0),
    "clip_by_group_norm": lambda: jaxclip.clip_by_group_norm(1.0, four_labels),
    "adagc": lambda: jaxclip.adagc(warmup_steps=3),
    "clippy": jaxclip.clippy,
    "stable_adam": jaxclip.scale_by_stable_adam,
}
UNITS = {
    "adaptive_grad_clip": lambda: jaxclip.adaptive_grad_clip(0.1),
    "project_max_norm": lambda: jaxclip.project_max_norm(1.0),
}
ALL = RULES | UNITS
COUNTS = {"guarded": {"all-reduce": 2}, "skip_spikes": {"all-reduce": 2}}  # all others: ONE
PLAIN = {"alone": 50, "guarded": 1, "monitored": 1}  # by the number of leaves
TWO_AXES = {"a": P("data"), "b": P(None, "model"), "c": P("data", "model"), "d": P()}


def _tree(leaves):
    """Kernels, whose rows are sharded, and biases, which are not."""
    return {f"{i:03d}": jnp.ones((3,) if i % 2 else (8, 4)) for i in range(leaves)}


def _specs(tree):
    return jax.tree.map(lambda x: P("data") if x.shape == (8, 4) else P(), tree)


def _on_auto(tx, tree, specs, mesh):
    with jax.set_mesh(mesh):
        put = {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in tree.items()}
        return collectives.count(lambda u, s: tx.update(u, s, u), put, jax.jit(tx.init)(put))


def _in_shard_map(tx, tree, specs, mesh):
    def run(u):
        return tx.update(u, tx.init(u), u)

    state = jax.tree.map(
        lambda x: P("data") if x.shape == (8, 4) else P(), jax.eval_shape(tx.init, tree)
    )
    run = jax.shard_map(run, mesh=mesh, in_specs=(specs,), out_specs=(specs, state))
    return collectives.count(run, tree)


def _mesh(sizes, names):
    return jax.make_mesh(sizes, names, (AxisType.Auto,) * len(names))


def _cases():
    for name in ALL:
        slow = [] if name in PLAIN else [pytest.mark.slow]
        yield pytest.param(name, PLAIN.get(name, 10), marks=slow)
    yield pytest.param("alone", 130, marks=pytest.mark.slow)  # more than two joined vectors


@pytest.mark.parametrize(("name", "leaves"), list(_cases()))
def test_one_all_reduce(name, leaves):
    """XLA joins the sums of single leaves; those of a whole tree are one sum from the start."""
    tree, mesh, want = _tree(leaves), _mesh((8,), ("data",)), COUNTS.get(name, ONE)
    assert _on_auto(ALL[name](), tree, _specs(tree), mesh) == want
    if name in RULES:  # types alone tell its axes
        assert _in_shard_map(RULES[name](), tree, _specs(tree), mesh) == want


def test_one_all_reduce_for_leaves_sharded_over_different_axes():
    tree = {key: jnp.ones((8, 4)) for key in TWO_AXES}
    mesh, tx = _mesh((4, 2), ("data", "model")), jaxclip.clip_by_global_norm(1.0)

    def run(u):
        return tx.update(u, tx.init(u))

    mapped = jax.shard_map(run, mesh=mesh, in_specs=(TWO_AXES,), out_specs=(TWO_AXES, P()))
    assert collectives.count(mapped, tree) == ONE


@pytest.mark.slow
def test_global_norm_over_six_devices():
    """Devices that are no power of two, and a part that is the same on some of them."""
    mesh = jax.make_mesh((3, 2), ("data", "model"), (AxisType.Auto,) * 2, devices=jax.devices()[:6])
    tree = {key: jnp.arange(24.0).reshape(6, 4) * (1 + i) for i, key in enumerate(TWO_AXES)}
    orders = (1, 2, 3, float("inf"))

    def run(u):
        each = [jax.value_and_grad(lambda u, p=p: jaxclip.norms.global_norm(u, p)) for p in orders]
        return [of_order(u) for of_order in each]

    mapped = jax.shard_map(run, mesh=mesh, in_specs=(TWO_AXES,), out_specs=[(P(), TWO_AXES)] * 4)
    for (got, slope), (want, known) in zip(jax.jit(mapped)(tree), jax.jit(run)(tree), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
        for key, x in known.items():
            np.testing.assert_allclose(slope[key], x, rtol=1e-5, atol=1e-7)


def test_count_includes_loops_but_not_branches():
    """A collective in a branch is not counted, one in a loop is."""
    mesh = _mesh((8,), ("data",))

    def run(x):
        x = jax.lax.fori_loop(0, 3, lambda i, y: y + jax.lax.psum(x, "data"), x)
        return jax.lax.cond(x[0] > 9, lambda: jax.lax.pmax(x, "data"), lambda: -x)

    mapped = jax.shard_map(run, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
    assert collectives.count(mapped, jnp.ones(8)) == ONE
