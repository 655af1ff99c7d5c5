"""Defects of other libraries, mostly of Optax: each of these must be right here."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.support import modes, registry
from tests.support import oracles as o
from tests.support.contexts import once


def _size(tree, ord=2):
    return float(o.by_tree(ord)(registry.floats(tree))[0])


@pytest.mark.slow
def test_norm_of_1000_bfloat16_leaves():
    ones = [jnp.ones(1, jnp.bfloat16)] * 1000
    np.testing.assert_allclose(jaxclip.norms.global_norm(ones), 31.6227766, rtol=1e-6)
    out, state = once(jaxclip.clip_by_global_norm(1.0), ones)
    np.testing.assert_allclose(state.norm, 31.6227766, rtol=1e-6)
    np.testing.assert_allclose(_size(out), 1.0, rtol=registry.eps("bfloat16"))


@pytest.mark.parametrize(("dtype", "values"), [("float16", [300.0]), ("float32", [1e20, 1.0])])
def test_squares_that_overflow(dtype, values):
    u = {"w": jnp.asarray(values, dtype)}
    p = {"w": jnp.ones_like(u["w"])}
    for tx in (
        jaxclip.clip_by_global_norm(1.0),
        jaxclip.clip_by_block_rms(1.0),
        jaxclip.adaptive_grad_clip(1.0),
        jaxclip.clip_by_norm(1.0),
    ):
        out, _ = once(tx, u, p)
        assert 0.9 < float(np.abs(o.wide(out["w"])).max()) < 1.5
    guarded = optax.apply_if_finite(jaxclip.clip_by_global_norm(1.0), 3)
    out, state = once(guarded, u, p)
    np.testing.assert_allclose(_size(out), 1.0, rtol=registry.eps(dtype))
    assert bool(state.last_finite)


def test_infinity_in_one_leaf():
    u = [jnp.array([jnp.inf, 1.0]), jnp.array([2.0])]
    out, state = once(jaxclip.clip_by_global_norm(1.0), u)
    registry.assert_same_bits(out, u)
    assert int(state.nonfinite_count) == 1
    zeroed = optax.chain(optax.zero_nans(), jaxclip.clip_by_global_norm(1.0))
    registry.assert_same_bits(once(zeroed, u)[0], u)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [jaxclip.clip_by_global_norm, jaxclip.clip_by_block_rms, jaxclip.clip]
)
def test_float32_threshold_with_bfloat16_leaves(make):
    u = {"w": jnp.asarray([3.0, 4.0], jnp.bfloat16)}
    want = once(make(1.0), u)[0]
    registry.assert_same_bits(once(make(jnp.float32(1.0)), u)[0], want)
    for value in (1.0, lambda count: jnp.float32(1.0), optax.constant_schedule(1.0)):
        tx = optax.inject_hyperparams(make)(value)
        out, state = jax.jit(tx.update)(u, tx.init(u))
        registry.assert_same_bits(out, want)
        jax.jit(tx.update)(u, state)


@pytest.mark.slow
def test_bfloat16_updates_stay_bfloat16():
    u = {"w": jnp.asarray([[3.0], [4.0]], jnp.bfloat16)}
    for c in (0.5, jnp.float32(0.5)):
        for tx in (jaxclip.clip_by_block_rms(c), jaxclip.adaptive_grad_clip(c)):
            assert once(tx, u, u)[0]["w"].dtype == jnp.bfloat16


@pytest.mark.slow
def test_monitor_under_scan_and_multi_steps():
    u = {"a": jnp.array([3.0, 4.0]), "b": jnp.ones(4)}
    tx = jaxclip.monitor()
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), u)
    state, _ = jax.lax.scan(lambda s, u: tx.update(u, s)[::-1], tx.init(u), stacked)
    assert float(jaxclip.metrics(state)["monitor/norm/a"]) == 10.0
    guarded = optax.apply_if_finite(tx, 2)
    _, state = jax.jit(guarded.update)(u, guarded.init(u), u)
    assert float(jaxclip.metrics(state)["monitor/norm/b"]) == 2.0
    with modes.relaxed():
        many = optax.MultiSteps(tx, 2)
        state = many.init(u)
        for _ in range(2):
            _, state = jax.jit(many.update)(u, state, u)
    np.testing.assert_allclose(jaxclip.metrics(state)["monitor/norm"], 29**0.5, rtol=1e-6)


def test_sharded_and_replicated_leaves():
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Auto,), devices=jax.devices()[:4])
    u = {"kernel": registry.build((8, 3)), "bias": registry.build((3,), seed=1)}
    tx = jaxclip.clip_by_global_norm(1.0)
    specs = {"kernel": P("x"), "bias": P()}
    run = jax.shard_map(lambda u: once(tx, u)[0], mesh=mesh, in_specs=(specs,), out_specs=specs)
    out = jax.jit(run)(u)
    np.testing.assert_allclose(_size(out), 1.0, rtol=1e-6)
    copies = [np.asarray(s.data) for s in out["bias"].addressable_shards]
    assert len(copies) == 4
    assert all((c == copies[0]).all() for c in copies)
    np.testing.assert_allclose(copies[0], np.asarray(u["bias"]) / _size(u), rtol=1e-6)


@pytest.mark.slow
def test_agc_on_explicit_mesh():
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Explicit,), devices=jax.devices()[:4])
    u, p = registry.build((8, 4), scale=5), registry.build((8, 4), seed=1)
    rule = registry.rule("adaptive_grad_clip")
    with jax.set_mesh(mesh):
        for spec in (P("x"), P(None, "x"), P()):

            def put(x, spec=spec):
                return jax.device_put(x, NamedSharding(mesh, spec))

            out = jax.jit(lambda u, p: once(jaxclip.adaptive_grad_clip(0.1), u, p)[0])(
                put(u), put(p)
            )
            registry.assert_rule(rule, 0.1, u, p, jax.device_get(out))


@pytest.mark.slow
def test_agc_units_of_odd_shapes():
    row = jnp.array([[3.0, 0.1, 4.0]])
    out, _ = once(jaxclip.adaptive_grad_clip(1.0), row, jnp.ones((1, 3)))
    np.testing.assert_allclose(out, [[1.0, 0.1, 1.0]], rtol=1e-6)  # three units of one weight
    u, p = registry.build((3, 4, 5), scale=5), registry.build((3, 4, 5), seed=1)
    out, _ = once(jaxclip.adaptive_grad_clip(0.5), u, p)
    norms = o.norm(u, 2, (0, 1))
    limits = 0.5 * np.maximum(o.norm(p, 2, (0, 1)), 1e-3)
    np.testing.assert_allclose(out, o.scaled([u], [norms], [limits])[0], rtol=1e-6)


@pytest.mark.slow
def test_agc_axes_that_a_leaf_lacks():
    u = {"kernel": registry.build((3, 4, 5), scale=5), "bias": registry.build((5,), scale=5)}
    p = jax.tree.map(jnp.ones_like, u)
    bias = o.norm(u["bias"], 2, (0,))  # reduced, or one unit without an axis to reduce
    want = o.scaled([u["bias"]], [bias], [np.float64(0.5 * 5**0.5)])[0]
    for axis, size in (((0, 1), 12), ((1,), 4)):
        out, _ = once(jaxclip.adaptive_grad_clip(0.5, axis=axis), u, p)
        np.testing.assert_allclose(o.norm(out["kernel"], 2, axis), 0.5 * size**0.5, rtol=1e-6)
        np.testing.assert_allclose(out["bias"], want, rtol=1e-6)


def test_stacked_layers():
    """A layer of size 100 stacked on one of 0.1: the good one keeps its gradient."""
    layers = jnp.stack([jnp.full((4,), 100.0), jnp.full((4,), 0.1)])
    out, _ = once(jaxclip.clip_by_block_rms(1.0, axis=1), layers)
    np.testing.assert_allclose(out[0], np.ones(4), rtol=1e-6)
    registry.assert_same_bits(out[1], layers[1])
    crushed, _ = once(jaxclip.clip_by_block_rms(1.0), layers)
    assert float(crushed[1, 0]) < 0.01  # what happens without `axis`


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_projection_of_a_small_weight_1000_times(dtype):
    """Nor does any other projection; nor one on the limit."""
    w = {"kernel": jnp.asarray([[6e-5, 1.2, 0.0], [8e-5, -1.6, 0.0]], dtype)}
    w = jaxclip.functional.project_max_norm(w, 2.0)  # bfloat16 rounds its norm to 2.003
    made = [
        jaxclip.project_max_norm(2.0), jaxclip.project_min_max_norm(0.0, 2.0),
        jaxclip.project_box(-2.0, 2.0), jaxclip.project_spectral_norm(2.5),
    ]  # fmt: skip

    def body(trees, _):
        pairs = list(zip(made, trees, strict=True))
        zero = jax.tree.map(jnp.zeros_like, w)
        updates = [tx.update(zero, tx.init(w), tree)[0] for tx, tree in pairs]
        with modes.relaxed():
            return [optax.apply_updates(*pair) for pair in zip(trees, updates, strict=True)], None

    after, _ = jax.lax.scan(body, [w] * len(made), length=1000)
    registry.assert_same_bits(after, [w] * len(made))
    pure, _ = jax.lax.scan(
        lambda w, _: (jaxclip.functional.project_max_norm(w, 2.0), None), w, length=1000
    )
    registry.assert_same_bits(pure, w)
    # What Keras does in that time, in float64: it divides by the norm + 1e-7.
    n = 1e-4
    for _ in range(1000):
        n *= min(n, 2.0) / (n + 1e-7)
    assert n < 1e-6


def test_norm_of_a_sharded_array():
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Auto,), devices=jax.devices()[:4])
    x = jax.device_put(jnp.full((8, 2), 2.0), NamedSharding(mesh, P("x")))
    norm = jax.jit(jaxclip.norms.global_norm)(x)
    assert float(norm) == 8.0  # no full_tensor() asked for
    assert norm.sharding.is_fully_replicated


LEARNED = {  # each soon after its warm-up
    "zclip": lambda: jaxclip.zclip(warmup_steps=5, max_norm=None),
    "clip_by_history": lambda: jaxclip.clip_by_history(window=8, min_history=4),
    "autoclip": lambda: jaxclip.autoclip(50.0, window=8),
    "adagc": lambda: jaxclip.adagc(warmup_steps=5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
def test_one_nan_in_a_learned_run(name):
    """In the warm-up and after it, memory stays as it would be without the bad update."""
    tx = LEARNED[name]()
    update = jax.jit(tx.update)
    good = [1.0, 1.1, 0.9, 1.0, 1.1, 0.9, 1.0, 100.0]
    bad = [1.0, np.nan, 1.1, 0.9, 1.0, 1.1, np.inf, 0.9, -np.inf, 1.0, np.nan, 100.0]
    ends = []
    for factors in (good, bad):
        state = tx.init(jnp.zeros(2))
        for factor in factors:
            out, state = update(jnp.array([0.6, 0.8]) * np.float32(factor), state)
        ends.append((out, state))
    (want, plain), (out, state) = ends
    assert _size(out) < 1.5
    assert int(state.clipped_count) == int(plain.clipped_count)
    assert int(state.nonfinite_count) == 4
    if name != "adagc":  # whose warm-up is counted in updates
        registry.assert_same_bits(out, want)
        registry.assert_same_bits(state.memory, plain.memory)
