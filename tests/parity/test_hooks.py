"""Clipped derivatives inside a network: PyTorch's hooks and TensorFlow's custom gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import backward

RANDOM = np.random.default_rng(0)
W, X = (RANDOM.normal(size=(4, 4)).astype(np.float32) for _ in range(2))
STEPS, C = 5, 0.3


def _ours(rule):
    def loss(w, h):
        for _ in range(STEPS):
            h = rule(jnp.tanh(h @ w))
        return jnp.sum(h**2)

    return jax.jit(jax.grad(loss, (0, 1)))(W, X)


def test_hooks_of_torch():
    torch = pytest.importorskip("torch", reason="pip install -e .[parity]")
    w, x = (torch.tensor(a, requires_grad=True) for a in (W, X))
    h = x
    for _ in range(STEPS):
        h = torch.tanh(h @ w)
        h.register_hook(lambda g: g.clamp(-C, C))
    (h**2).sum().backward()
    for ours, theirs in zip(_ours(lambda h: backward.clip(h, C)), (w, x), strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-5, atol=1e-6)


def test_custom_gradient_of_tensorflow():
    tf = pytest.importorskip("tensorflow", reason="pip install -e .[parity]")

    @tf.custom_gradient
    def clipped(h):
        return tf.identity(h), lambda g: tf.clip_by_norm(g, C)

    w, x = tf.constant(W), tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch([w, x])
        h = x
        for _ in range(STEPS):
            h = clipped(tf.tanh(h @ w))
        loss = tf.reduce_sum(h**2)
    theirs = tape.gradient(loss, [w, x])
    for ours, want in zip(_ours(lambda h: backward.clip_by_norm(h, C)), theirs, strict=True):
        np.testing.assert_allclose(ours, want.numpy(), rtol=1e-5, atol=1e-6)
