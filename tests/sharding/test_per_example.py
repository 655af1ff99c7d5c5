"""`per_example` and `noise_scale` on eight devices, which share the examples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.support import collectives

DEVICES, B = 8, 48
TREE = {"w": (3, 2), "b": ()}
OLD = tuple(map(int, jax.__version__.split(".")[:2])) < (0, 8)


def rule():
    return jaxclip.clip_by(jaxclip.thresholds.tracked_quantile(initial=1.0), scope="global")


def make(microbatch, axis_name=None):
    return jaxclip.per_example(rule(), microbatch=microbatch, axis_name=axis_name)


def data():
    rng = np.random.default_rng(0)
    grads = {k: jnp.asarray(rng.normal(size=(B, *v)), jnp.float32) for k, v in TREE.items()}
    mask = jnp.asarray(rng.random(B) < 0.8)
    grads["w"] = grads["w"].at[jnp.array([5, 40])].set(jnp.nan)
    return {k: jnp.ones(v) for k, v in TREE.items()}, grads, mask


def update(tx):
    def run(grads, mask, params):
        return tx.update(grads, tx.init(params), params, mask=mask)

    return run


def check(got, want):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, np.broadcast_to(y, x.shape), rtol=1e-5)


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(kind,))


def test_records_of_all_devices():
    """The largest of all norms, and the mean of all examples."""
    tx, grads = jaxclip.per_example(jaxclip.clip_by_norm(20.0)), jnp.arange(1.0, 1 + DEVICES)
    step = functools.partial(tx.update, params=jnp.zeros(()))
    run = jax.shard_map(
        step, mesh=mesh(), in_specs=(P("data"), P()), out_specs=P()
    )  # fmt: skip
    out, state = jax.jit(run)(grads, tx.init(jnp.zeros(())))
    assert (float(out), float(state.rule_state.norm)) == (4.5, 8.0)


@pytest.mark.slow
def test_of_jit():
    """With Auto and Explicit axes; one all-reduce of sums and one of maxima, no gathered rows."""
    params, grads, mask = data()
    want = jax.jit(update(make(None)))(grads, mask, params)
    for kind, k in ((AxisType.Auto, None), (AxisType.Auto, 16), (AxisType.Explicit, 16)):
        if OLD and kind == AxisType.Explicit:
            continue
        with jax.set_mesh(mesh(kind)):
            split = NamedSharding(mesh(kind), P("data"))
            arguments = jax.device_put((grads, mask), split)
            compiled = jax.jit(update(make(k))).lower(*arguments, params).compile()
            check(compiled(*arguments, params), want)
            found = collectives.of_text(compiled.as_text())
            assert found == {"all-reduce": 2 if k is None else found["all-reduce"]}, found


@pytest.mark.slow
def test_of_each_device():
    """In `shard_map`, `pmap` and `vmap`: norms are of one example, on one device."""
    params, grads, mask = data()
    want = jax.jit(update(make(None)))(grads, mask, params)
    shard = functools.partial(
        jax.shard_map, mesh=mesh(), in_specs=(P("data"), P("data"), P()), out_specs=(P(), P())
    )
    run = jax.jit(shard(update(make(4))))
    check(run(grads, mask, params), want)
    assert collectives.count(run, grads, mask, params) == {"all-reduce": 2}
    named = update(make(4, "data"))
    check(jax.jit(shard(named, check_vma=False))(grads, mask, params), want)
    parts = jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), (grads, mask))
    check(jax.pmap(named, "data", in_axes=(0, 0, None))(*parts, params), want)
    check(jax.jit(jax.vmap(named, (0, 0, None), axis_name="data"))(*parts, params), want)


@pytest.mark.slow
def test_of_leaves_in_parts():
    """Examples over one mesh axis, leaves over the other: norms are of whole examples."""
    both = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    tx = jaxclip.per_example(jaxclip.clip_by_global_norm(1.0))
    grads = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8)), jnp.float32)
    grads = grads.at[3, 7].set(jnp.nan)

    def step(grads, params):
        return tx.update(grads, tx.init(params), params)

    want = jax.jit(step)(grads, jnp.ones(8))
    specs = (P("data", "model"), P("model"))
    run = jax.shard_map(step, mesh=both, in_specs=specs, out_specs=(P("model"), P()))
    check(jax.jit(run)(grads, jnp.ones(8)), want)


def of_functions(varying):
    """An update from a function of one example, with parameters that vary over devices, or not."""
    tx = jaxclip.per_example(jaxclip.clip_by_global_norm(0.5), microbatch=2)
    vary = getattr(jax.lax, "pvary", None) or functools.partial(jax.lax.pcast, to="varying")

    def step(params, x):
        own = vary(params, ("data",)) if varying else params

        def gradients(example):
            return jax.grad(lambda w: jnp.sin(w @ example))(own)

        return tx.update(gradients, tx.init(params), params, batch=x)[0]

    return step, jnp.ones(3), jnp.linspace(-1.0, 2.0, 3 * B).reshape(B, 3)


@pytest.mark.slow
def test_functions_on_each_device():
    step, params, x = of_functions(False)
    want = jax.jit(step)(params, x)
    step, *_ = of_functions(True)
    run = jax.shard_map(step, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P())
    check(jax.jit(run)(params, x), want)


def test_traced():
    """Types tell which axes split the examples; gradients that are already sums are an error."""
    step, params, x = of_functions(False)
    run = jax.shard_map(step, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P())
    with pytest.raises(ValueError, match=r"at the update is the same .* jax\.grad has added it up"):
        jax.eval_shape(run, params, x)
    tx = jaxclip.per_example(optax.scale(2.0), microbatch=16)
    specs = {"mesh": mesh(), "in_specs": P("data"), "out_specs": (P(), P())}

    def updated(grads, params=None):
        return tx.update(grads, tx.init(params), params)

    run = jax.shard_map(lambda grads: updated(grads, params), **specs)
    assert jax.eval_shape(run, x)[0].shape == (3,)
    with pytest.raises(ValueError, match="Pass params to update, or axis_name="):
        jax.eval_shape(jax.shard_map(updated, **specs), x)
    if not OLD:
        with jax.set_mesh(mesh(AxisType.Explicit)):
            split = jax.device_put(x, NamedSharding(mesh(AxisType.Explicit), P("data")))
            assert jax.eval_shape(updated, split)[0].shape == (3,)
            tx = jaxclip.per_example(optax.scale(2.0), microbatch=3)
            with pytest.raises(ValueError, match="microbatch=3 must be a multiple of 8"):
                jax.eval_shape(lambda x: tx.update(x, tx.init(params)), split)
    named = jaxclip.per_example(optax.scale(2.0), axis_name="data")
    run = jax.shard_map(lambda x: named.update(x, named.init(params)), check_vma=False, **specs)
    assert jax.eval_shape(run, x)[0].shape == (3,)


@pytest.mark.slow
def test_noise_scale():
    """Sixteen micro-batches on eight devices, before a global norm."""
    grads = jnp.asarray(np.random.default_rng(0).normal(size=(16, 30)), jnp.float32) + 0.3
    tx = optax.chain(jaxclip.noise_scale(4, 64), jaxclip.clip_by_global_norm(1.0))

    def step(grads, params):
        return tx.update(grads, tx.init(params), params)

    params = jnp.ones(30)
    want = jax.jit(step)(grads, params)
    run = jax.shard_map(step, mesh=mesh(), in_specs=(P("data"), P()), out_specs=(P(), P()))
    check(jax.jit(run)(grads, params), want)
    sharded = jax.device_put(grads, NamedSharding(mesh(), P("data")))
    check(jax.jit(step)(sharded, params), want)
