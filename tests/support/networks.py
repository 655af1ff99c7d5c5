"""Small networks of Linen, NNX and Equinox, whose gradients are known by construction.

The loss is linear in the outputs and all biases start at 0. In a network of ReLU layers, weights
that are s times as large make the error at a layer s times as large for each layer behind it.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

DEPTH, WIDTH, LENGTH, HEADS, WORDS = 5, 8, 6, 2, 7
X = np.random.default_rng(0).normal(size=(4, LENGTH, WIDTH)).astype(np.float32)
NAMES = ("input", "hidden_a", "hidden_b", "body", "adapter")  # no order in the alphabet


@jax.custom_vjp
def poison(h, bad):
    """The identity, whose derivative is NaN if `bad`."""
    return h


poison.defvjp(lambda h, bad: (h, bad), lambda bad, g: (jnp.where(bad > 0, jnp.nan, g), bad))


class Batch(NamedTuple):
    """The data: examples; whether the way back is broken behind a layer; weight of residuals."""

    x: jax.Array
    bad: jax.Array
    residual: jax.Array


def batch(bad=None, residual=1.0):
    """The data, with NaN on the way back behind the layer or block `bad`."""
    flags = np.zeros(DEPTH, np.float32)
    if bad is not None:
        flags[bad] = 1
    return Batch(X, flags, np.float32(residual))


def forward(kind, dense, conv, block, end, b, words):
    """The network of a kind, from functions that apply its layers."""
    x = b.x
    if kind in ("mlp", "cnn"):
        apply = dense if kind == "mlp" else conv
        for i in range(DEPTH):
            x = poison(jax.nn.relu(apply(i, x)), b.bad[i])
    else:
        x = words(jnp.argmax(x[..., :WORDS], -1))
        for i in range(2):
            x = poison(block(i, x, b.residual), b.bad[i])
    return end(x.mean(1))


class LinenBlock(nn.Module):
    """A block of a transformer, with or without normalization."""

    normed: bool

    @nn.compact
    def __call__(self, x, residual):
        norm = nn.LayerNorm if self.normed else (lambda: lambda h: h)
        h = norm()(x)
        x = residual * x + nn.MultiHeadDotProductAttention(HEADS)(h, h)
        h = nn.Dense(2 * WIDTH, name="up")(norm()(x))
        return residual * x + nn.Dense(WIDTH, name="down")(nn.relu(h))


class Linen(nn.Module):
    """A network in Linen."""

    kind: str

    @nn.compact
    def __call__(self, b):
        conv = lambda i, x: nn.Conv(WIDTH, (3,))(x)  # noqa: E731
        dense = lambda i, x: nn.Dense(WIDTH, name=NAMES[i])(x)  # noqa: E731
        block = lambda i, x, r: LinenBlock(self.kind == "normed", name=f"z{i}")(x, r)  # noqa: E731
        words = lambda i: nn.Embed(WORDS, WIDTH, name="words")(i)  # noqa: E731
        return forward(self.kind, dense, conv, block, nn.Dense(3), b, words)


class NnxBlock(nnx.Module):
    """A block of a transformer, with or without normalization."""

    def __init__(self, normed, rngs):
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs)] * 2 if normed else [])

    def __call__(self, x, residual):
        first, second = self.norms or [lambda h: h] * 2
        x = residual * x + self.attention(first(x))
        return residual * x + self.down(nnx.relu(self.up(second(x))))


class Nnx(nnx.Module):
    """A network in NNX."""

    def __init__(self, kind, rngs):
        self.kind = kind
        if kind == "mlp":
            for name in NAMES:
                setattr(self, name, nnx.Linear(WIDTH, WIDTH, rngs=rngs))
        elif kind == "cnn":
            self.convs = nnx.List([nnx.Conv(WIDTH, WIDTH, (3,), rngs=rngs) for _ in NAMES])
        else:
            self.words = nnx.Embed(WORDS, WIDTH, rngs=rngs)
            self.blocks = nnx.List([NnxBlock(kind == "normed", rngs) for _ in range(2)])
        self.end = nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, b):
        dense = lambda i, x: getattr(self, NAMES[i])(x)  # noqa: E731
        conv = lambda i, x: self.convs[i](x)  # noqa: E731
        block = lambda i, x, r: self.blocks[i](x, r)  # noqa: E731
        return forward(self.kind, dense, conv, block, self.end, b, lambda i: self.words(i))


class EquinoxBlock(eqx.Module):
    """A block of a transformer, with or without normalization."""

    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    norms: list

    def __init__(self, normed, key):
        keys = jax.random.split(key, 3)
        self.attention = eqx.nn.MultiheadAttention(HEADS, WIDTH, key=keys[0])
        self.up = eqx.nn.Linear(WIDTH, 2 * WIDTH, key=keys[1])
        self.down = eqx.nn.Linear(2 * WIDTH, WIDTH, key=keys[2])
        self.norms = [eqx.nn.LayerNorm(WIDTH) for _ in range(2)] if normed else []

    def __call__(self, x, residual):
        first, second = [jax.vmap(n) for n in self.norms] or [lambda h: h] * 2
        h = first(x)
        x = residual * x + self.attention(h, h, h)
        return residual * x + jax.vmap(lambda h: self.down(jax.nn.relu(self.up(h))))(second(x))


class Equinox(eqx.Module):
    """A network in Equinox."""

    layers: dict
    end: eqx.nn.Linear
    kind: str = eqx.field(static=True)

    def __init__(self, kind, key):
        keys = list(jax.random.split(key, DEPTH + 2))
        self.kind = kind
        self.end = eqx.nn.Linear(WIDTH, 3, key=keys[0])
        if kind == "mlp":
            self.layers = {n: eqx.nn.Linear(WIDTH, WIDTH, key=keys.pop()) for n in NAMES}
        elif kind == "cnn":
            convs = (eqx.nn.Conv1d(WIDTH, WIDTH, 3, padding=1, key=keys.pop()) for _ in NAMES)
            self.layers = {"convs": list(convs)}
        else:
            blocks = [EquinoxBlock(kind == "normed", keys.pop()) for _ in range(2)]
            embedding = eqx.nn.Embedding(WORDS, WIDTH, key=keys.pop())
            self.layers = {"blocks": blocks, "words": embedding}

    def __call__(self, b):
        each = lambda f, x: jax.vmap(jax.vmap(f))(x)  # noqa: E731
        dense = lambda i, x: each(self.layers[NAMES[i]], x)  # noqa: E731
        conv = lambda i, x: jax.vmap(lambda h: self.layers["convs"][i](h.T).T)(x)  # noqa: E731
        block = lambda i, x, r: jax.vmap(lambda h: self.layers["blocks"][i](h, r))(x)  # noqa: E731
        words = lambda i: each(self.layers["words"], i)  # noqa: E731
        return forward(self.kind, dense, conv, block, jax.vmap(self.end), b, words)


def build(library, kind):
    """`function(params, batch) -> outputs`, and the parameters."""
    if library == "linen":
        model = Linen(kind)
        return model.apply, jax.jit(model.init)(jax.random.key(0), batch())
    if library == "nnx":
        graph, params, rest = nnx.split(Nnx(kind, nnx.Rngs(0)), nnx.Param, ...)
        return lambda p, b: nnx.merge(graph, p, rest)(b), params
    params, static = eqx.partition(Equinox(kind, jax.random.key(0)), eqx.is_inexact_array)
    return lambda p, b: eqx.combine(p, static)(b), params
