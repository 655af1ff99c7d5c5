"""A small convolutional network in float16 with `scale_loss`, beside the same in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import datasets

import jaxclip

pytestmark = [pytest.mark.slow, pytest.mark.relaxed]

STEPS, BATCH, TRAINED = 300, 64, 1300
OVERFLOWS = [20, 21, 90, 200]
OPTIMIZED = {"xla_backend_optimization_level": 3}  # else float16 takes thirty times as long
FORM = ("NHWC", "HWIO", "NHWC")


def _digits():
    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return jnp.float32(images[order].reshape(-1, 8, 8, 1) / 16), jnp.asarray(labels[order])


def _params():
    draw = np.random.default_rng(1).standard_normal
    shapes = {"a": (3, 3, 1, 8), "b": (3, 3, 8, 16), "c": (256, 10)}
    sizes = {k: np.sqrt(2 / np.prod(shape[:-1])) for k, shape in shapes.items()}
    return {k: jnp.float32(draw(shape) * sizes[k]) for k, shape in shapes.items()}


def _logits(params, x):
    for name, stride in (("a", 1), ("b", 2)):
        x = jax.lax.conv_general_dilated(
            x, params[name], (stride, stride), "SAME", dimension_numbers=FORM
        )
        x = jax.nn.relu(x)
    return x.reshape(x.shape[0], -1) @ params["c"]


def _trained(dtype, wrap, size=1.0):
    """The share of right answers after the training, and the last state.

    A loss times `size` has gradients as small. At some steps the loss overflows in float16.
    """
    images, labels = _digits()
    rate = optax.cosine_decay_schedule(3e-3, STEPS)
    tx = wrap(optax.chain(jaxclip.clip_by_global_norm(size), optax.adam(rate, eps=1e-12)))
    picks = np.random.default_rng(2).integers(0, TRAINED, (STEPS, BATCH))
    peaks = np.ones(STEPS, np.float32)
    if dtype == jnp.float16:
        peaks[OVERFLOWS] = 1e6

    def loss(params, x, y, scale):
        logits = _logits(*jax.tree.map(lambda a: a.astype(dtype), (params, x)))
        found = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), y)
        return size * scale * found.mean()

    def step(carry, inputs):
        params, state = carry
        pick, peak = inputs
        has_scale = isinstance(state, jaxclip.GuardState)
        scale = jaxclip.loss_scale(state) if has_scale else jnp.float32(1)
        grads = jax.grad(loss)(params, peak * images[pick], labels[pick], scale)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    train = jax.jit(lambda carry, xs: jax.lax.scan(step, carry, xs)[0], compiler_options=OPTIMIZED)
    params, state = train((_params(), tx.init(_params())), (picks, peaks))
    right = jnp.argmax(_logits(params, images[TRAINED:]), -1) == labels[TRAINED:]
    return float(right.mean()), state


def test_accuracy_of_float32():
    """With four overflows, a first scale that is too large, and gradients too small for float16."""
    want, _ = _trained(jnp.float32, lambda chain: chain)
    got, state = _trained(
        jnp.float16,
        lambda chain: jaxclip.scale_loss(chain, 2.0**40, period=50, max_scale=2.0**40),
        2.0**-16,
    )
    assert want > 0.96
    assert abs(got - want) <= 0.005
    assert 8 <= int(state.skipped_count) < 20
    assert 2.0**28 < float(jaxclip.loss_scale(state)) < 2.0**40
