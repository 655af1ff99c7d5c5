"""A small transformer whose logits grow: with `qk_clip` they stay at tau, the loss no worse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip

VOCABULARY, TOKENS, WIDTH, HEADS, BATCH, STEPS, BACK = 16, 12, 32, 2, 24, 240, 3
TAU = 20.0
NORMS = {"scale": (WIDTH,)}
BLOCK = {
    "attn": {
        **{k: {"kernel": (WIDTH, HEADS, WIDTH // HEADS), "bias": (HEADS, WIDTH // HEADS)}
           for k in ("query", "key", "value")},
        "out": {"kernel": (HEADS, WIDTH // HEADS, WIDTH)},
    },
    "up": {"kernel": (WIDTH, 2 * WIDTH)},
    "down": {"kernel": (2 * WIDTH, WIDTH)},
}  # fmt: skip
SHAPES = {
    "words": (VOCABULARY, WIDTH), "places": (TOKENS, WIDTH), "block_0": BLOCK, "block_1": BLOCK,
    "said": {"kernel": (WIDTH, VOCABULARY)},
}  # fmt: skip


def _start():
    random = np.random.default_rng(0)

    def leaf(shape):
        fan_in = shape[0] if len(shape) < 3 or shape[0] == WIDTH else WIDTH
        return jnp.asarray(random.normal(size=shape) / fan_in**0.5, jnp.float32)

    def tree(shapes):
        return {k: tree(s) if isinstance(s, dict) else leaf(s) for k, s in shapes.items()}

    return tree(SHAPES)


def _normed(x):
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


def _block(x, p):
    q, k, v = (jnp.einsum("btf,fhd->bthd", _normed(x), p["attn"][name]["kernel"])
               + p["attn"][name]["bias"] for name in ("query", "key", "value"))  # fmt: skip
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    past = jnp.tril(jnp.ones((TOKENS, TOKENS), bool))
    weights = jax.nn.softmax(jnp.where(past, logits, -1e9))
    x = x + jnp.einsum("bhqk,bkhd,hdf->bqf", weights, v, p["attn"]["out"]["kernel"])
    x = x + jax.nn.relu(_normed(x) @ p["up"]["kernel"]) @ p["down"]["kernel"]
    return x, logits.max((0, 2, 3))


def _loss(params, tokens):
    """Of saying the token `BACK` places before; and the largest logits."""
    x, logits = params["words"][tokens] + params["places"], {}
    for name in ("block_0", "block_1"):
        x, largest = _block(x, params[name])
        logits[name] = {"attn": largest}
    said = _normed(x) @ params["said"]["kernel"]
    wanted = optax.softmax_cross_entropy_with_integer_labels(said[:, BACK:], tokens[:, :-BACK])
    return wanted.mean(), logits


@functools.partial(jax.jit, static_argnums=0)
def _train(last):
    """The loss and the largest logit of every step, by block."""
    tx = optax.chain(optax.adam(3e-2), *last)

    def step(carry, key):
        params, state = carry
        tokens = jax.random.randint(key, (BATCH, TOKENS), 0, VOCABULARY)
        (loss, logits), grads = jax.value_and_grad(_loss, has_aux=True)(params, tokens)
        updates, state = tx.update(grads, state, params, max_logits=logits)
        seen = jnp.stack([jnp.max(x) for x in jax.tree.leaves(logits)])
        return (optax.apply_updates(params, updates), state), (loss, seen)

    params = _start()
    keys = jax.random.split(jax.random.key(0), STEPS)
    return jax.lax.scan(step, (params, tx.init(params)), keys)[1]


@pytest.mark.slow
@pytest.mark.relaxed
def test_logits_stay_at_tau():
    free, grown = jax.device_get(_train(()))
    clip = jaxclip.qk_clip(TAU, roles=jaxclip.projections.linen_roles)
    loss, logits = jax.device_get(_train((clip,)))
    assert grown[-1].max() > 5 * TAU
    assert logits.max() < 1.4 * TAU  # one update adds to tau
    assert np.median(logits[30:].max(1)) < 1.1 * TAU
    assert loss[-20:].mean() <= 1.05 * free[-20:].mean()
    assert loss[-1] < 0.01
