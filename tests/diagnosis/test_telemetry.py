"""`metrics` and `monitor`: found through every wrapper, named, flat."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import jaxclip
from tests.support import modes, oracles, registry
from tests.support.contexts import once

U = {"w": jnp.array([[3.0], [4.0]]), "b": jnp.array([12.0])}
KEYS = {
    f"clip_by_global_norm/{k}"
    for k in ("norm", "threshold", "scale", "fraction", "count", "clipped_count", "nonfinite_count")
}


def rule():
    return jaxclip.clip_by_global_norm(1.3)


def _after(tx, u=U, steps=1):
    state = tx.init(u)
    for _ in range(steps):
        _, state = jax.jit(tx.update)(u, state, u)
    return state


def _is_ours(metrics, norm=13.0):
    assert metrics.keys() == KEYS
    assert all(isinstance(v, jax.Array) and v.shape == () for v in metrics.values())
    np.testing.assert_allclose(metrics["clip_by_global_norm/norm"], norm, rtol=1e-6)
    np.testing.assert_allclose(metrics["clip_by_global_norm/scale"], 1.3 / norm, rtol=1e-6)


@pytest.mark.slow
def test_alone_and_in_chains():
    _is_ours(jaxclip.metrics(_after(rule())))
    _is_ours(jaxclip.metrics(_after(optax.chain(rule(), optax.trace(0.9)))))
    _is_ours(jaxclip.metrics(_after(optax.named_chain(("a", rule()), ("b", optax.scale(-1.0))))))
    nested = optax.chain(optax.identity(), optax.chain(optax.chain(rule())))
    _is_ours(jaxclip.metrics(_after(nested)))


@pytest.mark.slow
@pytest.mark.relaxed
def test_wrappers_of_optax():
    mask = {"w": True, "b": False}
    _is_ours(jaxclip.metrics(_after(optax.masked(rule(), mask))), norm=5.0)
    parts = optax.partition({"x": rule(), "y": optax.identity()}, {"w": "x", "b": "y"})
    _is_ours(jaxclip.metrics(_after(parts)), norm=5.0)
    _is_ours(jaxclip.metrics(_after(optax.inject_hyperparams(jaxclip.clip_by_global_norm)(1.3))))
    many = optax.MultiSteps(rule(), 2)
    _is_ours(jaxclip.metrics(_after(many, steps=2)))
    _is_ours(jaxclip.metrics(_after(optax.apply_if_finite(rule(), 3))))
    deep = optax.MultiSteps(optax.chain(optax.masked(rule(), mask), optax.adam(1e-3)), 1)
    _is_ours(jaxclip.metrics(_after(deep)), norm=5.0)
    _is_ours(jaxclip.metrics(_after(optax.chain(rule(), optax.adamw(1e-3)))))


@pytest.mark.relaxed
def test_training_states():
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(U["w"])
            self.b = nnx.Param(U["b"])

    model = Model()
    optimizer = nnx.Optimizer(model, optax.chain(rule(), optax.sgd(0.1)), wrt=nnx.Param)
    optimizer.update(model, nnx.state(model, nnx.Param))
    _is_ours(jaxclip.metrics(optimizer))
    _is_ours(jaxclip.metrics(optimizer.opt_state))
    state = train_state.TrainState.create(
        apply_fn=None, params=U, tx=optax.chain(rule(), optax.sgd(0.1))
    )
    state = state.apply_gradients(grads=U)
    _is_ours(jaxclip.metrics(state.opt_state))
    _is_ours(jaxclip.metrics(state))


def test_equinox():
    model = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    grads = eqx.filter(model, eqx.is_array)
    tx = rule()
    _, state = tx.update(grads, tx.init(grads), grads)
    assert jaxclip.metrics(state).keys() == KEYS


def test_under_jit_vmap_and_scan():
    tx = optax.chain(rule(), optax.identity())
    state = tx.init(U)

    def body(state, scale):
        _, state = tx.update(jax.tree.map(lambda x: x * scale, U), state)
        return state, jaxclip.metrics(state)

    _, log = jax.jit(lambda s: jax.lax.scan(body, s, jnp.array([1.0, 2.0, 0.05])))(state)
    np.testing.assert_allclose(log["clip_by_global_norm/norm"], [13, 26, 0.65], rtol=1e-6)
    np.testing.assert_array_equal(log["clip_by_global_norm/count"], [1, 2, 3])
    np.testing.assert_array_equal(log["clip_by_global_norm/clipped_count"], [1, 2, 2])


def test_the_same_rule_twice():
    tx = optax.chain(jaxclip.clip_by_global_norm(2.6), jaxclip.clip_by_norm(1.0), rule())
    found = jaxclip.metrics(_after(tx))
    np.testing.assert_allclose(found["clip_by_global_norm/norm"], 13.0, rtol=1e-6)
    np.testing.assert_allclose(found["clip_by_global_norm_2/threshold"], 1.3, rtol=1e-6)
    np.testing.assert_allclose(found["clip_by_norm/threshold"], 1.0, rtol=1e-6)
    assert len(found) == 21


@pytest.mark.slow
def test_names():
    tx = optax.chain(
        jaxclip.clip_by(1.0, scope="leaf", name="mine"), jaxclip.clip_by(1.0, scope="global"),
        jaxclip.adaptive_grad_clip(0.1), jaxclip.clip_by_block_rms(1.0),
        jaxclip.clip_by_average_norm(1.0), jaxclip.clip(1.0, record=True),
        jaxclip.clip_by_value(-1.0, 1.0, record=True),
    )  # fmt: skip
    names = {k.split("/")[0] for k in jaxclip.metrics(_after(tx))}
    assert names == {
        "mine", "clip_by", "adaptive_grad_clip", "clip_by_block_rms", "clip_by_average_norm",
        "clip", "clip_by_value",
    }  # fmt: skip


def test_metrics_of_states_without_rules():
    assert jaxclip.metrics(optax.sgd(0.1).init(U)) == {}
    assert jaxclip.metrics(()) == {}


def test_metrics_of_an_abstract_state():
    shapes = jax.eval_shape(rule().init, U)
    assert jaxclip.metrics(shapes).keys() == KEYS


# ---- monitor


@pytest.mark.parametrize("ord", [1, 2, float("inf")])
def test_monitor_changes_nothing_and_names_leaves(ord):
    dense = registry.build({"kernel": (4, 3), "bias": (3,)})
    u = {"dense": dense, "list": [U["b"]], "step": jnp.array(3), "none": None}
    tx = jaxclip.monitor(ord=ord)
    out, state = jax.jit(tx.update)(u, tx.init(u))
    registry.assert_same_bits(out, u)
    found = jaxclip.metrics(state)
    leaves = {
        "dense/kernel": u["dense"]["kernel"],
        "dense/bias": u["dense"]["bias"],
        "list/0": U["b"],
    }
    for path, leaf in leaves.items():
        want = oracles.norm(leaf, ord).item()
        np.testing.assert_allclose(found[f"monitor/norm/{path}"], want, rtol=1e-6)
    whole = oracles.by_tree(ord)([np.asarray(x) for x in leaves.values()])[0]
    np.testing.assert_allclose(found["monitor/norm"], whole, rtol=1e-6)
    assert not any("step" in k for k in found)


def test_monitor_of_one_array_and_of_nothing():
    x = jnp.array([3.0, 4.0])
    assert float(jaxclip.metrics(_after(jaxclip.monitor(), x))["monitor/norm"]) == 5.0
    assert float(jaxclip.metrics(_after(jaxclip.monitor(), {}))["monitor/norm"]) == 0.0


def test_monitor_twice_before_and_after():
    tx = optax.chain(jaxclip.monitor(name="raw"), rule(), jaxclip.monitor(name="clipped"))
    found = jaxclip.metrics(_after(tx))
    np.testing.assert_allclose(found["raw/norm/w"], 5.0, rtol=1e-6)
    np.testing.assert_allclose(found["clipped/norm/w"], 0.5, rtol=1e-6)
    twice = jaxclip.metrics(_after(optax.chain(jaxclip.monitor(), jaxclip.monitor())))
    assert {"monitor/norm", "monitor_2/norm", "monitor_2/norm/w"} <= twice.keys()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_monitor_state_is_a_fixed_point(dtype):
    with modes.maybe_x64(dtype):
        tx = jaxclip.monitor()
        state = tx.init(U)
        u = jax.tree.map(lambda x: x.astype(dtype), U)
        _, after = jax.jit(tx.update)(u, state)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        for a, b in zip(*map(jax.tree.leaves, (after, state)), strict=True):
            assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)


def test_monitor_of_a_nonfinite_leaf():
    u = {"good": jnp.ones(2), "bad": jnp.array([1.0, jnp.nan])}
    found = jaxclip.metrics(_after(jaxclip.monitor(), u))
    assert np.isnan(found["monitor/norm/bad"])
    assert np.isfinite(found["monitor/norm/good"])
    assert np.isnan(found["monitor/norm"])


def test_monitor_of_params():
    """The parameters before the update, beside the updates; the updates pass."""
    params = {"w": jnp.array([[0.6], [0.8]], jnp.bfloat16), "b": jnp.array([2.0])}
    tx = optax.chain(
        jaxclip.monitor(name="grads"), jaxclip.monitor(of="params", name="weights"),
        jaxclip.monitor(of="updates", name="after"),
    )  # fmt: skip
    out, state = jax.jit(tx.update)(U, tx.init(params), params)
    registry.assert_same_bits(out, U)
    found = jaxclip.metrics(state)
    for key in ("w", "b"):
        want = oracles.norm(params[key]).item()
        np.testing.assert_allclose(found[f"weights/norm/{key}"], want, rtol=1e-6)
        np.testing.assert_allclose(found[f"grads/norm/{key}"], oracles.norm(U[key]).item())
        np.testing.assert_allclose(found[f"after/norm/{key}"], found[f"grads/norm/{key}"])
    np.testing.assert_allclose(found["weights/norm"], np.sqrt(5.0), rtol=2e-3)
    assert type(state[1]).__mro__[1] is jaxclip.MonitorState
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))


@pytest.mark.slow
def test_monitor_of_params_copies_nothing():
    """In a loop XLA overwrites parameters in place, and copies none of them to be read."""

    def copies(monitor):
        tx = optax.chain(jaxclip.clip_by_global_norm(1.0), optax.sgd(0.1), monitor)
        params = {"one": jnp.ones((24, 40)), "two": jnp.ones((40, 24))}

        def loss(p, x):
            return jnp.mean((jnp.tanh(x @ p["one"]) @ p["two"]) ** 2)

        def step(carry, x):
            p, state = carry
            updates, state = tx.update(jax.grad(loss)(p, x), state, p)
            return (optax.apply_updates(p, updates), state), jaxclip.metrics(state)

        def epoch(carry, x):
            return jax.lax.scan(step, carry, x)

        given = (params, tx.init(params)), jnp.ones((5, 8, 24))
        text = jax.jit(epoch, donate_argnums=0).lower(*given).compile().as_text()
        loop = max(re.split(r"\n(?=%)", text), key=lambda part: part.count("dynamic-update-slice"))
        return len(re.findall(r"= f32\[(?:24,40|40,24)\]\S* copy\(", loop))

    def reads_when_it_likes():
        plain = jaxclip.monitor(of="params")

        def update(updates, state, params):
            return updates, plain.update(updates, state, params)[1]

        return optax.GradientTransformation(plain.init, update)

    assert copies(jaxclip.monitor(of="params")) == copies(optax.identity()) == 0
    assert copies(reads_when_it_likes()) > 0  # the check can fail


def test_monitor_of_params_counts_nonfinite():
    tx = jaxclip.monitor(of="params")
    params = U | {"b": jnp.array([jnp.inf])}
    _, state = tx.update(U, tx.init(params), params)
    assert int(state.nonfinite_count) == int(state.count) == 1
    _, state = tx.update(params, state, U)
    assert int(state.nonfinite_count) == 1
    assert int(state.count) == 2


def test_monitor_errors_of_params():
    for bad in ("weights", None, 3):
        with pytest.raises(ValueError, match=f"of={bad!r}"):
            jaxclip.monitor(of=bad)
    tx = jaxclip.monitor(of="params", name="weights")
    with pytest.raises(ValueError, match=r"params=None: weights needs update\("):
        tx.update(U, tx.init(U))
    with pytest.raises(ValueError, match=r"params has the leaves \['w'\], but init saw"):
        tx.update(U, tx.init(U), {"w": U["w"]})
    with pytest.raises(ValueError, match=r"updates has the leaves \['w'\], but init saw"):
        jaxclip.monitor().update({"w": U["w"]}, jaxclip.monitor().init(U), U)


def test_monitor_errors():
    with pytest.raises(ValueError, match=r"ord=0\.5"):
        jaxclip.monitor(ord=0.5)
    with pytest.raises(TypeError, match="ord='rms' must be a number"):
        jaxclip.monitor(ord="rms")
    with pytest.raises((TypeError, ValueError), match="name="):
        jaxclip.monitor(name=3)


@pytest.mark.relaxed
def test_metrics_of_nested_optimizers():
    rule = jaxclip.clip_by_global_norm
    tx = optax.contrib.sam(optax.chain(rule(1.0), optax.sgd(0.1)), optax.chain(rule(2.0)))
    found = jaxclip.metrics(tx.init(jnp.ones(2)))
    assert {"clip_by_global_norm/norm", "clip_by_global_norm_2/norm"} <= set(found)


def test_rule_names_that_end_in_a_number():
    names = ["layer", "layer_2", "layer", "layer"]
    tx = optax.chain(*(jaxclip.clip_by(1.0, scope="global", name=n) for n in names))
    found = {key.split("/")[0] for key in jaxclip.metrics(tx.init(jnp.ones(2)))}
    assert found == {"layer", "layer_2", "layer_3", "layer_4"}


def test_monitor_with_colliding_leaf_names():
    u = {"a/b": jnp.array([3.0, 4.0]), "a": {"b": jnp.array([1.0])}}
    found = jaxclip.metrics(once(jaxclip.monitor(), u)[1])
    sizes = [float(v) for k, v in found.items() if k.startswith("monitor/norm/")]
    assert sorted(sizes) == [1.0, 5.0]


def test_monitor_of_params_with_partial_updates():
    tx = jaxclip.monitor(of="params")
    out, state = tx.update({"w": U["w"]}, tx.init(U), U)
    registry.assert_same_bits(out, {"w": U["w"]})
    np.testing.assert_allclose(state.norm, 13.0)
