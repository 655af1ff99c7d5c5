"""`monitor`: the norm of every leaf, of updates and of parameters."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import modes, oracles, registry
from tests.support.contexts import once

U = {"w": jnp.array([[3.0], [4.0]]), "b": jnp.array([12.0])}


def rule():
    return jaxclip.clip_by_global_norm(1.3)


def _after(tx, u=U, steps=1):
    state = tx.init(u)
    for _ in range(steps):
        _, state = jax.jit(tx.update)(u, state, u)
    return state


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert int(state.nonfinite_count) == int(state.update_count) == 1
    _, state = tx.update(params, state, U)
    assert int(state.nonfinite_count) == 1
    assert int(state.update_count) == 2


def test_monitor_errors_of_params():
    for bad in ("weights", None, 3):
        with pytest.raises(ValueError, match=f"of={bad!r}"):
            jaxclip.monitor(of=bad)
    tx = jaxclip.monitor(of="params", name="weights")
    with pytest.raises(ValueError, match=r"params=None: weights needs update\("):
        tx.update(U, tx.init(U))
    with pytest.raises(
        ValueError, match=r"params has other leaves than init saw: new \[\], missing \['b'\]"
    ):
        tx.update(U, tx.init(U), {"w": U["w"]})
    with pytest.raises(
        ValueError, match=r"updates has other leaves than init saw: new \[\], missing \['b'\]"
    ):
        jaxclip.monitor().update({"w": U["w"]}, jaxclip.monitor().init(U), U)


def test_monitor_errors():
    with pytest.raises(ValueError, match=r"ord=0\.5"):
        jaxclip.monitor(ord=0.5)
    with pytest.raises(TypeError, match="ord='rms' must be a number"):
        jaxclip.monitor(ord="rms")
    with pytest.raises((TypeError, ValueError), match="name="):
        jaxclip.monitor(name=3)


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
