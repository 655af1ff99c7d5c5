"""Thresholds in the state of `optax.inject_hyperparams`, and objects of `jaxclip.thresholds`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import registry

U = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}


def _tree(**kwargs):
    return registry.build(registry.TREES["nested"], **kwargs)


def _once(tx, u):
    return tx.update(u, tx.init(u))


FACTORIES = {
    "clip": (jaxclip.clip, "max_delta"),
    "clip_by_norm": (jaxclip.clip_by_norm, "max_norm"),
    "clip_by_average_norm": (jaxclip.clip_by_average_norm, "max_norm"),
    "clip_by_block_rms": (jaxclip.clip_by_block_rms, "threshold"),
    "clip_by_global_norm": (jaxclip.clip_by_global_norm, "max_norm"),
    "adaptive_grad_clip": (jaxclip.adaptive_grad_clip, "clipping"),
}


@pytest.mark.slow
def test_inject_hyperparams():
    """The factories themselves, defaults included; a schedule; then a change by hand."""
    u, p = _tree(dtype="bfloat16", scale=8), _tree(dtype="bfloat16", seed=1)
    given = {name: (name, 0.5) for name in FACTORIES}
    given["scheduled"] = ("clip_by_norm", lambda count: 0.5 * (1.0 + count.astype(jnp.float32)))
    txs = {}
    for key, (name, value) in given.items():
        factory, argument = FACTORIES[name]
        txs[key] = optax.inject_hyperparams(factory)(**{argument: value})
    states = {key: tx.init(p) for key, tx in txs.items()}
    update = jax.jit(lambda states: {key: tx.update(u, states[key], p) for key, tx in txs.items()})
    for limit, scheduled in ((0.5, 0.5), (0.5, 1.0), (0.25, 1.5)):
        for name, (_, argument) in FACTORIES.items():
            held = states[name].hyperparams
            held[argument] = jnp.asarray(limit, held[argument].dtype)
        results = update(states)
        states = {key: state for key, (_, state) in results.items()}
        for key, (out, _) in results.items():
            c = scheduled if key == "scheduled" else limit
            registry.assert_rule(registry.rule(given[key][0]), c, u, p, out)


def test_inject_both_bounds():
    u = jnp.array([-9.0, 9.0])
    tx = optax.inject_hyperparams(jaxclip.clip_by_value)(-1.0, 2.0)
    out, _ = jax.jit(tx.update)(u, tx.init(u), u)
    np.testing.assert_array_equal(out, [-1.0, 2.0])


@pytest.mark.slow
def test_inject_keeps_what_decides_the_program():
    u = {"w": jnp.array([[3.0, 1.0], [4.0, 1.0]])}
    make = optax.inject_hyperparams(jaxclip.clip_by_norm, static_args=("axis", "ord"))
    tx = make(1.0, axis=0, ord=1)
    out, _ = jax.jit(tx.update)(u, tx.init(u), u)
    np.testing.assert_allclose(out["w"], [[3 / 7, 0.5], [4 / 7, 0.5]], rtol=1e-6)


# ---- objects of jaxclip.thresholds


@pytest.mark.slow
def test_threshold_objects():
    u = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([0.1])}
    p = {"w": jnp.array([0.0, 10.0]), "b": jnp.array([0.0])}
    tx = jaxclip.clip_by(jaxclip.thresholds.constant(1.0), scope="leaf")
    np.testing.assert_allclose(_once(tx, u)[0]["w"], [0.6, 0.8], rtol=1e-6)
    tx = jaxclip.clip_by(jaxclip.thresholds.relative_to_params(0.1, eps=0.5), scope="leaf")
    out, state = tx.update(u, tx.init(p), p)
    np.testing.assert_allclose(out["w"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(out["b"], [0.05], rtol=1e-6)  # the floor: 0.1 * 0.5
    np.testing.assert_allclose(state.threshold, 0.05, rtol=1e-6)
    whole = jaxclip.clip_by(jaxclip.thresholds.relative_to_params(0.1), scope="global")
    out, _ = whole.update(u, whole.init(p), p)
    np.testing.assert_allclose(out["w"], np.array([3.0, 4.0]) / 25.01**0.5, rtol=1e-6)


TRACED = {
    "window": (lambda v: jaxclip.autoclip(window=v), 3),
    "ord": (lambda v: jaxclip.clip_by_norm(1.0, ord=v), 2.0),
    "axis": (lambda v: jaxclip.clip_by_norm(1.0, axis=v), 0),
}


@pytest.mark.parametrize("name", TRACED)
def test_traced_static_arguments_are_refused(name):
    make, value = TRACED[name]
    with pytest.raises(TypeError, match=rf"{name} is traced, but .*optax\.inject_hyperparams"):
        jax.eval_shape(lambda v: make(v).init(U), value)


@pytest.mark.relaxed  # Optax promotes
def test_stable_adam_with_traced_b2():
    tx = optax.inject_hyperparams(jaxclip.scale_by_stable_adam)(b2=0.75)
    plain = jaxclip.scale_by_stable_adam(b2=0.75)
    update, other_update = jax.jit(tx.update), jax.jit(plain.update)
    state, other = tx.init(U), plain.init(U)
    for factor in (1.0, 3.0, 2.0):
        u = jax.tree.map(lambda x, f=factor: np.float32(f) * x, U)
        got, state = update(u, state)
        want, other = other_update(u, other)
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6)
