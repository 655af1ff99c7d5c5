"""The networks of `benchmarks.spikes`, each with its data and its kinds of bad batches.

Parameters are functions of a seed. The data are the same in every run.
"""

from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.train.data import Data
from jaxclip.train.training import losses, model

Tree = Any
TARGETS, INPUTS, LOSS, NAN = 1, 2, 3, 4  # the kinds of a bad batch; 0 is an ordinary one
KINDS = {
    TARGETS: "targets of other examples",
    INPUTS: "inputs too large",
    LOSS: "loss too large",
    NAN: "loss NaN",
}


class Network(NamedTuple):
    """A network and its data, of which a batch is a random part."""

    data: str  # in words
    inputs: np.ndarray
    targets: np.ndarray
    params: Callable[[int], Tree]  # of a seed
    loss: Callable[[Tree, jax.Array, jax.Array], jax.Array]
    kinds: tuple[int, ...]  # of bad batches, which take turns
    lost: float  # a run that ends above this loss has failed


def mlp(data: Data, hidden: tuple[int, ...] = (64, 64), images: int = 12_800) -> Network:
    """A ReLU network on the first images."""
    inputs, targets = data.train_images[:images], data.train_labels[:images]
    sizes = (inputs.shape[1], *hidden, int(targets.max()) + 1)

    def build(seed: int) -> model.Network:
        return model.build(sizes, seed, activation="relu", init="he", init_std=1.0)

    _, stats, apply = build(0)

    def loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
        return losses.cross_entropy(apply(params, stats, x, train=False)[0], y)

    seen = f"{data.name}, the first {len(inputs):,} images"
    return Network(seen, inputs, targets, lambda s: build(s).params, loss, (TARGETS, INPUTS), 1.0)


def rnn(length: int = 100, width: int = 128, sequences: int = 12_800) -> Network:
    """A tanh network that adds the two marked numbers of a sequence.

    The best constant answer is 1, with a loss of 1/6.
    """
    random = np.random.default_rng(0)
    numbers = random.uniform(size=(sequences, length))
    marks = np.zeros_like(numbers)
    half = length // 2
    for first in (0, half):
        np.put_along_axis(marks, random.integers(first, first + half, (sequences, 1)), 1, 1)
    targets = np.sum(numbers * marks, axis=1)

    def params(seed: int) -> Tree:
        random = np.random.default_rng(seed)
        orthogonal, _ = np.linalg.qr(random.normal(size=(width, width)))
        return {
            "inputs": _scaled(random, 2, width),
            "state": np.float32(orthogonal),
            "bias": np.zeros(width, np.float32),
            "output": _scaled(random, width, 1),
            "output_bias": np.zeros(1, np.float32),
        }

    def loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
        def cell(state: jax.Array, entering: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(entering + state @ params["state"]), None

        entering = jnp.swapaxes(x, 0, 1) @ params["inputs"] + params["bias"]
        last, _ = jax.lax.scan(cell, jnp.zeros_like(entering[0]), entering)
        sums = last @ params["output"] + params["output_bias"]
        return jnp.mean((sums[:, 0] - y) ** 2)

    inputs = np.stack([numbers, marks], axis=-1, dtype=np.float32)
    seen = f"adding problem, {sequences:,} sequences of {length}"
    return Network(seen, inputs, np.float32(targets), params, loss, (INPUTS, LOSS), 0.5)


def transformer(
    layers: int = 4, width: int = 128, heads: int = 4, length: int = 32, characters: int = 465_000
) -> Network:
    """A causal transformer, its norms before its blocks, that predicts the next character.

    The text is that of the topics of `help()`, which every Python ships and some change. A run that
    ends above the entropy of single characters has learned nothing, or lost it.
    """
    text = _text()[:characters]
    windows = (len(text) - 1) // length
    inputs, targets = (text[i : i + windows * length].reshape(-1, length) for i in (0, 1))
    shares = np.unique(text, return_counts=True)[1] / len(text)
    entropy = float(-np.sum(shares * np.log(shares)))

    def params(seed: int) -> Tree:
        random = np.random.default_rng(seed)
        return {
            "characters": _scaled(random, 1, CHARACTERS * width).reshape(-1, width),
            "positions": _scaled(random, 1, length * width).reshape(-1, width),
            "blocks": [_block(random, width, layers) for _ in range(layers)],
            "norm": np.ones(width, np.float32),
            "head": _scaled(random, width, CHARACTERS),
        }

    def loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
        h = params["characters"][x] + params["positions"]
        for block in params["blocks"]:
            entering = _rms_norm(h, block["attention_norm"]) @ block["query_key_value"]
            h = h + _attention(entering, heads) @ block["attention"]
            hidden = jax.nn.relu(_rms_norm(h, block["hidden_norm"]) @ block["hidden"])
            h = h + hidden @ block["output"]
        return losses.cross_entropy(_rms_norm(h, params["norm"]) @ params["head"], y)

    seen = f"pydoc_data.topics, {len(text):,} characters"
    return Network(seen, inputs, targets, params, loss, (TARGETS, LOSS), entropy)


def _block(random: np.random.Generator, width: int, layers: int) -> Tree:
    """Draws a layer, whose output shrinks with the number of layers."""
    shrink = np.float32((2 * layers) ** -0.5)
    return {
        "attention_norm": np.ones(width, np.float32),
        "query_key_value": _scaled(random, width, 3 * width),
        "attention": shrink * _scaled(random, width, width),
        "hidden_norm": np.ones(width, np.float32),
        "hidden": _scaled(random, width, 2 * width),
        "output": shrink * _scaled(random, 2 * width, width),
    }


def _attention(entering: jax.Array, heads: int) -> jax.Array:
    """Lets every position see those before it; `entering` has queries, keys and values."""
    batch, length, width = entering.shape
    split = entering.reshape(batch, length, 3, heads, width // 3 // heads)
    query, key, value = jnp.moveaxis(split, (2, 3), (0, 2))
    scores = query @ jnp.swapaxes(key, -1, -2) / query.shape[-1] ** 0.5
    past = jnp.where(np.tri(length, dtype=bool), scores, -1e9)
    return jnp.swapaxes(jax.nn.softmax(past) @ value, 1, 2).reshape(batch, length, width // 3)


def _rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return scale * x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


CHARACTERS = 96  # printable ASCII and the newline


def _text() -> np.ndarray:
    """Returns English text as numbers below `CHARACTERS`; other characters are left out."""
    text = "\n".join(topics[name] for name in sorted(topics)).replace("\n", "\x7f")
    codes = np.frombuffer(text.encode("ascii", "ignore"), np.uint8)
    return codes[codes >= 32].astype(np.int32) - 32


def _scaled(random: np.random.Generator, inputs: int, outputs: int) -> np.ndarray:
    """Draws a kernel that keeps the variance of its inputs."""
    return np.float32(random.normal(size=(inputs, outputs)) / inputs**0.5)
