"""Snapshots of `rollback`: of any tree, with names that hide nothing, inside other wrappers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import guards, registry
from tests.support.guards import U

NAN, INF = math.nan, math.inf


def _tree():
    return {
        "half": jnp.array([1.0, 2.0], jnp.float16),
        "single": jnp.array([[3.0], [4.0]]),
        "complex": jnp.array([1 + 2j], jnp.complex64),
        "whole": jnp.array([7], jnp.int32),
        "none": None,
    }


def test_every_kind_of_leaf_returns():
    """Those that are not floating have a step of zero."""
    u = _tree()
    last = optax.GradientTransformation(
        lambda p: jax.tree.map(jnp.zeros_like, p), lambda u, s, p=None: (u, u)
    )
    tx = jaxclip.rollback(last, threshold=50.0, patience=1)
    update = jax.jit(tx.update)
    out, state = update(u, tx.init(u), u)
    registry.assert_same_bits(out, u)
    far = {k: None if x is None else np.asarray(x) * x.dtype.type(9) for k, x in u.items()}
    back, after = update(far, state, far)
    assert bool(after.memory.rolled_back)
    for key, x in u.items():
        if key != "none":
            assert back[key].dtype == x.dtype
            want = np.zeros_like(x) if key == "whole" else np.asarray(x) - far[key]
            np.testing.assert_array_equal(back[key], want)
    registry.assert_same_bits(after.guarded_state, tx.init(u).guarded_state)
    assert guards.types(after) == guards.types(state) == guards.types(tx.init(u))


@pytest.mark.slow
@pytest.mark.relaxed
def test_tools_of_optax_see_one_state():
    """`tree_get` passes the snapshots by; `tree_map_params` places them like the parameters."""
    tx = jaxclip.rollback(optax.adam(1e-3), threshold=1.0)
    state = tx.init(U)
    assert int(optax.tree_utils.tree_get(state, "count")) == 0
    marked = optax.tree_utils.tree_map_params(tx, lambda _, x: x, state, {"w": "W", "b": "B"},
                                              transform_non_params=lambda _: "-")  # fmt: skip
    inner = marked.guarded_state[0]
    for params, inside in marked.memory.saved:
        assert params == {"w": "W", "b": "B"}
        assert inside[0] == ("-", inner.mu, inner.nu)
    _, states = guards.loop(tx, [0.01, 1.0, 0.01])
    assert int(optax.tree_utils.tree_get(states[-1], "count")) == 3


def test_snapshots_have_no_names_of_fields():
    """Containers of the state stay, and so do trees like the parameters."""
    kinds = optax.GradientTransformation(
        lambda p: {
            "ema": [optax.EmaState(jnp.zeros((), jnp.int32), p)],
            "none": optax.EmptyState(),
        },
        lambda u, s, p=None: (u, s),
    )
    state = jaxclip.rollback(kinds, threshold=1.0, keep=1).init(U)
    ((_, inside),) = state.memory.saved
    assert jax.tree.structure(inside) == jax.tree.structure({"ema": [(0, U)], "none": ()})
    rated = optax.inject_hyperparams(optax.scale)(step_size=0.5)
    state = jaxclip.rollback(rated, threshold=1.0).init(U)
    assert float(optax.tree_utils.tree_get(state, "step_size")) == 0.5


@pytest.mark.slow
@pytest.mark.relaxed
def test_containers_inside_and_around():
    """States with keys of random numbers; donation; `vmap`; `grad`."""
    inner = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(1)), optax.trace(0.9))
    tx = jaxclip.rollback(inner, threshold=20.0, patience=1, every=1, keep=3, check_step=False)

    def step(params, state, factor):
        updates, state = tx.update(jax.tree.map(lambda x: factor * x, U), state, params)
        return optax.apply_updates(params, updates), state

    donated = jax.jit(step, donate_argnums=(0, 1))
    params, state = jax.tree.map(jnp.copy, U), tx.init(U)
    for factor in (1.0, 1.0, 2.0, 2.0):  # back to the weights before each step
        params, state = donated(params, state, factor)
    assert int(state.memory.rollback_count) == 2
    for key, x in U.items():
        np.testing.assert_allclose(params[key], x, rtol=1e-6)

    def both(batch):
        _, state = jax.vmap(tx.update)(
            jax.tree.map(jnp.zeros_like, batch), jax.vmap(tx.init)(batch), batch
        )
        return jax.vmap(tx.update)(batch, state, batch)[1].memory.rolled_back

    batch = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), U)
    assert jax.jit(both)(batch).tolist() == [False, True]

    def loss(rate):
        tx = jaxclip.rollback(optax.scale(rate), threshold=20.0)
        state = tx.init(U)
        for _ in range(2):
            updates, state = tx.update(U, state, U)
        return jnp.sum(updates["w"])

    assert float(jax.jit(jax.grad(loss))(1.0)) == 7.0


def test_state_with_other_snapshots_is_refused():
    two, three = (jaxclip.rollback(optax.identity(), threshold=1.0, keep=k) for k in (2, 3))
    with pytest.raises(
        ValueError, match=r"state of rollback has nothing at state.memory.saved\[2\]"
    ):
        three.update(U, two.init(U), U)
