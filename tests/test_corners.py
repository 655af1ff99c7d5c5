"""Corners that each room leaves to its slow tests, in short: plain `pytest` runs every line.

The plain tests' coverage of the core, lines and branches, is held at 100 % by `.ci/run`.
"""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests import registry

U = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}

TRACED = {
    "window": (lambda v: jaxclip.autoclip(window=v), 3),
    "ord": (lambda v: jaxclip.clip_by_norm(1.0, ord=v), 2.0),
    "axis": (lambda v: jaxclip.clip_by_norm(1.0, axis=v), 0),
}


@pytest.mark.parametrize("name", TRACED)
def test_what_decides_a_shape_cannot_be_traced(name):
    make, value = TRACED[name]
    with pytest.raises(TypeError, match=rf"{name} is traced, but .*optax\.inject_hyperparams"):
        jax.eval_shape(lambda v: make(v).init(U), value)


@pytest.mark.relaxed  # Optax promotes
def test_arguments_that_are_traced():
    """As those that are not."""
    factories = {
        "autoclip": (jaxclip.autoclip, {"percentile": 30.0}, {"window": 4}),
        "adam": (jaxclip.scale_by_stable_adam, {"b2": 0.75}, {}),
    }
    for factory, traced, fixed in factories.values():
        tx = optax.inject_hyperparams(factory, static_args=tuple(fixed))(**traced, **fixed)
        plain = factory(**traced, **fixed)
        update, state, other = jax.jit(tx.update), tx.init(U), plain.init(U)
        for factor in (1.0, 3.0, 2.0):
            u = jax.tree.map(lambda x, f=factor: f * x, U)
            got, state = update(u, state)
            want, other = plain.update(u, other)
            for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-6)


def test_biases_that_explode_beside_level_weights():
    grads = {
        f"Dense_{i}": {"kernel": jnp.ones((2, 2)), "bias": jnp.full(1, 0.1 ** (1 + i))}
        for i in range(4)
    }
    found = jaxclip.diagnose(grads)
    assert found.finding == "exploding"
    assert "norm of the biases grows by a factor of 10 a layer" in found.findings[0]


def test_losses_that_a_guard_is_given():
    """A whole number is one; several numbers are none."""
    tx = jaxclip.skip_nonfinite(optax.identity())
    _, state = tx.update(U, tx.init(U), value=jnp.asarray(3, jnp.int32))
    assert not bool(state.skipped)
    with pytest.raises(ValueError, match=r"value=.* must be a scalar, the loss"):
        tx.update(U, tx.init(U), value=jnp.ones(2))


def test_a_loss_that_differs_between_devices_is_averaged():
    """NaN on one of two: both skip."""
    tx = jaxclip.skip_nonfinite(optax.identity(), axis_name="x")

    def step(u, loss):
        out, state = tx.update(u, tx.init(u), value=loss)
        return out, state.skipped

    run = jax.vmap(step, axis_name="x")
    out, skipped = run(jnp.ones((2, 3)), jnp.array([1.0, jnp.nan]))
    assert skipped.all()
    assert not out.any()


def test_spectral_norm_of_nothing_and_its_derivative():
    empty = jnp.zeros((0, 3))
    registry.assert_same_bits(jaxclip.functional.spectral_norm(empty, 1.0), empty)
    w = jnp.array([[3.0, 0.0], [0.0, 0.5]])
    slope = jax.grad(lambda w: jnp.sum(jaxclip.functional.spectral_norm(w, 1.0)))(w)
    # The clipped value does not follow; between the two, (1 - 0.5) / (3 - 0.5).
    np.testing.assert_allclose(slope, [[0.0, 0.2], [0.2, 1.0]], atol=1e-5)


def test_a_pickled_state():
    state = jaxclip.clip_by_norm(1.0).init(U)
    registry.assert_same_bits(pickle.loads(pickle.dumps(state)), state)


def test_monitors_of_means_and_of_other_parameters():
    with pytest.raises(TypeError, match="ord='rms' must be a number"):
        jaxclip.monitor(ord="rms")
    tx = jaxclip.monitor(of="params")
    out, state = tx.update({"a": U["a"]}, tx.init(U), U)
    registry.assert_same_bits(out, {"a": U["a"]})
    np.testing.assert_allclose(state.norm, 5.0)
