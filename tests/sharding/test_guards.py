"""Guards on several devices: a NaN on one shard skips the step on every device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.support import guards
from tests.support.guards import GUARDS

NAN = float("nan")
SPECS = {"kernel": P("x"), "bias": P()}
by_guard = pytest.mark.parametrize("guard", GUARDS)


def _mesh():
    return jax.make_mesh((4,), ("x",), (AxisType.Auto,), devices=jax.devices()[:4])


def _bad():
    """Good but for one element, which lies on the third of four devices."""
    kernel = jnp.ones((8, 3))
    return {"kernel": kernel.at[5, 1].set(NAN), "bias": jnp.full(3, 2.0)}


def _good():
    return {"kernel": jnp.ones((8, 3)), "bias": jnp.full(3, 2.0)}


@pytest.mark.slow
@by_guard
def test_nan_on_one_shard(guard):
    """With replication checking: that the counts leave as replicated is proof that all agree."""
    tx = GUARDS[guard](optax.trace(0.5))

    def steps(*updates):
        state, outs = tx.init(updates[0]), []
        for u in updates:
            out, state = tx.update(u, state)
            outs.append(out)
        return outs, (state.skipped, state.update_count, state.skipped_count, state.norm)

    run = jax.jit(
        jax.shard_map(
            steps, mesh=_mesh(), in_specs=(SPECS,) * 3, out_specs=([SPECS] * 3, (P(),) * 4)
        )
    )
    (first, second, third), (skipped, count, skipped_count, norm) = run(_good(), _bad(), _good())
    assert guards.is_zero(second)
    np.testing.assert_array_equal(first["kernel"], np.ones((8, 3)))
    np.testing.assert_array_equal(third["kernel"], np.full((8, 3), 1.5))  # as after one step
    np.testing.assert_array_equal(third["bias"], np.full(3, 3.0))
    assert (bool(skipped), int(count), int(skipped_count)) == (False, 3, 1)
    np.testing.assert_allclose(norm, 6.0, rtol=1e-6)


@pytest.mark.slow
@by_guard
def test_nan_on_one_shard_with_axis_name(guard):
    """shard_map without replication checking, and pmap."""
    tx = GUARDS[guard](optax.trace(0.5), axis_name="x")

    def step(kernel):
        out, state = tx.update({"kernel": kernel}, tx.init({"kernel": kernel}))
        return out["kernel"], state.skipped[None], state.update_count[None]

    run = jax.shard_map(step, mesh=_mesh(), in_specs=P("x"), out_specs=P("x"), check_vma=False)
    for u, bad in ((_good(), False), (_bad(), True)):
        out, skipped, count = jax.jit(run)(u["kernel"])
        np.testing.assert_array_equal(skipped, [bad] * 4)
        np.testing.assert_array_equal(count, [1] * 4)
        assert guards.is_zero(out) == bad
    out, skipped, _ = jax.pmap(step, "x")(_bad()["kernel"].reshape(4, 2, 3))
    np.testing.assert_array_equal(skipped[:, 0], [True] * 4)
    assert guards.is_zero(out)


def _divided(updates, params):
    """By weights of which one, on the third of four devices, is zero."""
    return jax.tree.map(lambda u, p: u / p, updates, params)


def _one_zero():
    return {"kernel": jnp.ones((8, 3)).at[5, 1].set(0.0), "bias": jnp.full(3, 2.0)}


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_step_that_is_not_finite_on_one_shard(axis_type):
    """Under `jit`, and in checked `shard_map`, whose types prove that all devices agree."""
    mesh = jax.make_mesh((4,), ("x",), (axis_type,), devices=jax.devices()[:4])
    tx = jaxclip.skip_nonfinite(optax.stateless(_divided))

    def step(updates, params):
        out, state = tx.update(updates, tx.init(params), params)
        return out, (state.skipped, state.nonfinite_step_count)

    mapped = jax.shard_map(step, mesh=_mesh(), in_specs=(SPECS, SPECS), out_specs=(SPECS, P()))
    for run, where in ((step, mesh), (mapped, _mesh())):
        put = {k: NamedSharding(where, spec) for k, spec in SPECS.items()}
        for params, bad in ((_good(), False), (_one_zero(), True)):
            args = jax.device_put(_good(), put), jax.device_put(params, put)
            with jax.set_mesh(where):
                out, (skipped, count) = jax.jit(run)(*args)
            assert (bool(skipped), int(count)) == (bad, int(bad))
            assert guards.is_zero(out) == bad


def test_step_that_is_not_finite_on_one_device_of_pmap():
    tx = jaxclip.skip_nonfinite(optax.stateless(_divided), axis_name="x")

    def step(updates, params):
        out, state = tx.update(updates, tx.init(params), params)
        return out, state.skipped

    parts = [x["kernel"].reshape(4, 2, 3) for x in (_good(), _one_zero())]
    out, skipped = jax.pmap(step, "x")(*parts)
    np.testing.assert_array_equal(skipped, [True] * 4)
    assert guards.is_zero(out)


def test_apply_if_finite_decides_per_device():
    """The reason for the guard: without it each device decides for itself."""
    tx = optax.apply_if_finite(optax.identity(), 3)

    def step(kernel):
        out, state = tx.update(kernel, tx.init(kernel))
        return out, state.last_finite[None]

    run = jax.shard_map(step, mesh=_mesh(), in_specs=P("x"), out_specs=P("x"), check_vma=False)
    _, fine = jax.jit(run)(_bad()["kernel"])
    np.testing.assert_array_equal(fine, [True, True, False, True])


@pytest.mark.slow
def test_loss_that_differs_between_devices():
    """Averaged first: one device's NaN is everyone's, and one device's spike a part of the mean."""
    spikes = jaxclip.skip_spikes(optax.identity(), sigma=3.0, window=8, min_history=4)
    rules = {"skip_nonfinite": jaxclip.skip_nonfinite(optax.identity()), "skip_spikes": spikes}

    def steps(u, losses):
        log = {}
        for name, tx in rules.items():
            state, skipped = tx.init(u), []
            for row in losses:  # of one number: this device's
                _, state = tx.update(u, state, u, value=row[0])
                skipped.append(state.skipped)
            log[name] = jnp.stack(skipped)
        return log

    losses = np.float32([[1, 2, 3, 4], [1, 2, 3, 4.4], [1, 2, 3, 3.6], [1, 2, 3, 4], [2.5] * 4])
    losses = np.concatenate([losses, [[1, 2, 3, 4.4], [1, 2, NAN, 4], [1, 9, 3, 4]]], dtype="f4")
    run = jax.shard_map(
        steps, mesh=_mesh(), in_specs=(SPECS, P(None, "x")), out_specs=dict.fromkeys(rules, P())
    )
    log = jax.jit(run)(_good(), losses)
    np.testing.assert_array_equal(log["skip_nonfinite"], [False] * 6 + [True, False])
    np.testing.assert_array_equal(log["skip_spikes"], [False] * 6 + [True, True])


def test_loss_is_averaged_over_the_named_axis():
    """Under `vmap` with an axis name, where types do not tell which arrays vary."""
    tx = jaxclip.skip_spikes(optax.identity(), window=3, min_history=2, axis_name="i")

    def step(u, loss):
        return tx.update(u, tx.init(u), value=loss)[1].memory.losses.observations

    seen = jax.jit(jax.vmap(step, axis_name="i"))(jnp.ones((4, 2)), jnp.arange(4.0))
    np.testing.assert_allclose(seen[:, 0], 1.5)


def test_sharded_and_replicated_leaves_have_one_norm():
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    tree = {"w": jnp.arange(16.0).reshape(8, 2), "b": jnp.array([3.0, 4.0])}
    specs = {"w": P("data"), "b": P()}
    rule = jaxclip.clip_by_global_norm(1.0)

    def norms(u):
        return rule.update(u, rule.init(u))[1].norm, jaxclip.norms.global_norm(u, float("inf"))

    run = jax.jit(jax.shard_map(norms, mesh=mesh, in_specs=(specs,), out_specs=P()))
    two, most = run(tree)
    flat = np.concatenate([np.arange(16.0), [3.0, 4.0]])
    np.testing.assert_allclose([two, most], [np.linalg.norm(flat), 15.0], rtol=1e-6)
