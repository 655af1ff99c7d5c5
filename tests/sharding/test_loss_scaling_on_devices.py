"""A loss scale around snapshots on eight devices: one decision in every mode, one all-reduce."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.support import collectives

pytestmark = pytest.mark.slow

SPECS = {"kernel": P(None, "x"), "bias": P()}  # of steps in a row
COUNTS = ("scale_loss/skipped_count", "rollback/rollback_count", "rollback/count")


def _guarded(**keywords):
    inside = jaxclip.rollback(
        optax.trace(0.5), threshold=100.0, patience=1, check_step=False, **keywords
    )
    return jaxclip.scale_loss(inside, 2.0, **keywords)


def _steps():
    """A good step, one with a NaN on one device, one that is too large everywhere."""
    good = {"kernel": jnp.ones((8, 3)), "bias": jnp.full(3, 2.0)}
    bad = good | {"kernel": good["kernel"].at[5, 1].set(jnp.nan)}
    large = jax.tree.map(lambda x: 200 * x, good)
    return jax.tree.map(lambda *x: jnp.stack(x), good, bad, large)


def _first(updates):
    return jax.tree.map(lambda x: x[0], updates)


def _run(tx, updates):
    params = _first(updates)

    def body(state, u):
        return tx.update(u, state, params, value=jnp.float32(1))[::-1]

    state, outs = jax.lax.scan(body, tx.init(params), updates)
    found = jaxclip.metrics(state)
    return outs, [found[key] for key in COUNTS], state.guarded_state.memory.saved


def _check(kernels, counts):
    for kernel, want in zip(kernels, (0.5, 0.0, 0.0), strict=True):
        np.testing.assert_array_equal(kernel, np.full((8, 3), want))
    for count, want in zip(counts, (1, 1, 2), strict=True):
        assert np.asarray(count).ravel().tolist() == [want] * np.size(count)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_jit(kind):
    """Leaves keep their sharding, and the snapshots have that of the parameters."""
    mesh, tx = jax.make_mesh((8,), ("x",), (kind,)), _guarded()
    put = {key: NamedSharding(mesh, spec) for key, spec in SPECS.items()}
    with jax.set_mesh(mesh):
        steps = jax.device_put(_steps(), put)
        outs, counts, saved = jax.jit(lambda us: _run(tx, us))(steps)
        params = jax.jit(_first)(steps)
        state = jax.jit(tx.init)(params)
        found = collectives.count(tx.update, params, state, params)
    _check(outs["kernel"], counts)
    assert found == {"all-reduce": 1}
    assert outs["kernel"].sharding.is_equivalent_to(put["kernel"], 3)
    whole = NamedSharding(mesh, P("x"))
    if kind == AxisType.Explicit:
        for saved_params, inside in saved:
            for tree in (saved_params, inside[0]):
                assert tree["kernel"].sharding.is_equivalent_to(whole, 2)


def test_checked_shard_map():
    """That counts leave as replicated is proof that all devices agree."""
    mesh, tx = jax.make_mesh((8,), ("x",), (AxisType.Auto,)), _guarded()
    specs = SPECS, [P()] * 3
    run = jax.shard_map(lambda us: _run(tx, us)[:2], mesh=mesh, in_specs=(SPECS,), out_specs=specs)
    outs, counts = jax.jit(run)(_steps())
    _check(outs["kernel"], counts)


def test_unchecked_shard_map_and_pmap():
    """Where nothing can be known, with `axis_name`."""
    mesh, tx = jax.make_mesh((8,), ("x",), (AxisType.Auto,)), _guarded(axis_name="x")

    def steps(kernels):
        outs, counts, _ = _run(tx, kernels)
        return outs, [count[None] for count in counts]

    kernels, specs = _steps()["kernel"], (SPECS["kernel"], P("x"))
    run = jax.shard_map(steps, mesh=mesh, in_specs=specs[:1], out_specs=specs, check_vma=False)
    _check(*jax.jit(run)(kernels))
    outs, counts = jax.pmap(steps, "x", in_axes=1, out_axes=(1, 0))(kernels[:, :, None])
    _check(outs[:, :, 0], counts)
