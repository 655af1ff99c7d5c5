"""An RNN of 200 steps whose derivatives explode: NaN by itself, trained with a bound a step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import backward

STEPS, HIDDEN, BATCH = 200, 32, 16


def _start():
    random = np.random.default_rng(0)
    orthogonal = np.linalg.qr(random.normal(size=(HIDDEN, HIDDEN)))[0]
    tree = {
        "w": 8 * orthogonal,
        "u": random.normal(size=HIDDEN),
        "v": random.normal(size=HIDDEN) / 8,
    }
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def _loss(params, probes, key, bound):
    """Of saying the input of the step before; `bound(h, probe)` is at every step."""
    x = jax.random.normal(key, (STEPS, BATCH), jnp.float32)

    def step(h, inputs):
        now, probe = inputs
        h = jnp.tanh(bound(h, probe) @ params["w"] + now[:, None] * params["u"][None])
        return h, h @ params["v"]

    zero = jnp.zeros((BATCH, HIDDEN), jnp.float32)
    _, said = jax.lax.scan(step, zero, (x, probes))
    return jnp.mean((said[1:] - x[:-1]) ** 2)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _train(bound, count):
    """The losses, and the norms of the cotangents of every update and time step."""
    tx = optax.chain(jaxclip.clip_by_global_norm(1.0), optax.adam(1e-2))

    def update(carry, key):
        params, state = carry
        probes = jnp.zeros((STEPS, 2), jnp.float32)
        loss, (grads, seen) = jax.value_and_grad(_loss, (0, 1))(params, probes, key, bound)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), (loss, seen)

    params = _start()
    keys = jax.random.split(jax.random.key(0), count)
    return jax.lax.scan(update, (params, tx.init(params)), keys)[1]


def unbounded(h, probe):
    return backward.clip_by_norm(h, None, axis=1, probe=probe)


def bounded(h, probe):
    """The derivative of each example has a norm of at most 1e-3."""
    return backward.clip_by_norm(h, 1e-3, axis=1, probe=probe)


@pytest.mark.slow
@pytest.mark.relaxed
def test_training_through_200_steps():
    lost, seen = jax.device_get(_train(unbounded, 3))
    norms = seen[0, :, 0]  # of the first update, by time step
    assert not np.isfinite(norms[0])  # the first step's is the product of 200 factors
    growth = np.diff(np.log(norms[np.isfinite(norms)]))
    assert np.median(growth) < -0.3  # in time, so it grows on the way back
    assert np.isnan(lost[1:]).all()
    assert (seen[0, :, 1] == 0).all()
    losses, seen = jax.device_get(_train(bounded, 200))
    assert np.isfinite(losses).all()
    assert losses[-10:].mean() < 0.25 * losses[0]
    assert np.isfinite(seen).all()
    assert seen[..., 1].max() == 1
